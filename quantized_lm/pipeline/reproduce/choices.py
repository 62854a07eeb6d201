"""Stages that choose a format for every matrix: by hand, by what each costs, or by search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.allocate import allocate, manual_allocation
from quantized_lm.pipeline.recipe import QuantizeRecipe, Recipe
from quantized_lm.pipeline.reproduce.models import ALLOCATION, FloatStage, drop_checkpoint
from quantized_lm.pipeline.reproduce.sizing import sizes_of
from quantized_lm.pipeline.reproduce.store import FolderOf, Stage
from quantized_lm.pipeline.reproduce.task import Setting, method_recipe
from quantized_lm.pipeline.search import SearchPlan, search
from quantized_lm.pipeline.sensitivity import measure_sensitivity, read_report
from quantized_lm.records import build, write_record

SEARCH = "search"  # the method whose rates and text loss the search takes


@dataclass(frozen=True, eq=False)
class SensitivityStage(Stage):
    """What each format of each matrix costs.

    Attributes:
        metric: key in METRICS. windows: of training text.
    """

    teacher: FloatStage
    metric: str
    choices: tuple[str, ...]
    windows: int

    kind = "sensitivity"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The teacher."""
        return (self.teacher,)

    @property
    def content(self) -> tuple[object, ...]:
        """What is measured, and on how much."""
        return (self.metric, self.choices, self.windows)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"measure sensitivity by {self.metric}"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Measure; goes on where it was."""
        measure_sensitivity(
            self.teacher.recipe,
            metric=self.metric,
            choices=self.choices,
            run=folder_of(self.teacher),
            out=folder,
            windows=self.windows,
        )

    def report(self, folder_of: FolderOf) -> Path:
        """Where `run` left what it measured."""
        return folder_of(self) / f"{self.metric}.json"


@dataclass(frozen=True, eq=False)
class MeasuredStage(Stage):
    """The cheapest formats within a budget, by a metric."""

    sensitivity: SensitivityStage
    budget_bytes: int

    kind = "allocation"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The sensitivities."""
        return (self.sensitivity,)

    @property
    def content(self) -> tuple[object, ...]:
        """The budget."""
        return (self.budget_bytes,)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"allocate {self.budget_bytes} bytes by {self.sensitivity.metric}"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Allocate."""
        report = read_report(self.sensitivity.report(folder_of))
        write_record(folder / ALLOCATION, allocate(report, budget_bytes=self.budget_bytes))


@dataclass(frozen=True, eq=False)
class ManualStage(Stage):
    """What a person would choose; needs no model, only its sizes."""

    recipe: Recipe
    choices: tuple[str, ...]
    budget_bytes: int

    kind = "allocation"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """None."""
        return ()

    @property
    def content(self) -> tuple[object, ...]:
        """Sizes, choices and budget."""
        return (
            "manual",
            self.recipe.architecture,
            self.recipe.model,
            self.choices,
            self.budget_bytes,
        )

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"allocate {self.budget_bytes} bytes by hand"

    def run(self, folder: Path, folder_of: FolderOf) -> None:  # noqa: ARG002
        """Allocate."""
        sizes = sizes_of(self.recipe, self.choices)
        allocation = manual_allocation(sizes, budget_bytes=self.budget_bytes)
        write_record(folder / ALLOCATION, allocation)


@dataclass(frozen=True, eq=False)
class SearchStage(Stage):
    """Formats by architecture search.

    Attributes:
        rates: of the weights in the search.
    """

    teacher: FloatStage
    rates: QuantizeRecipe
    plan: SearchPlan

    kind = "search"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The teacher."""
        return (self.teacher,)

    @property
    def content(self) -> tuple[object, ...]:
        """All that is searched for, and how."""
        return (self.rates, asdict(self.plan))

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"search formats for {self.plan.budget_bytes} bytes ({self.plan.steps} steps)"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Search; goes on from a checkpoint."""
        recipe = replace(self.teacher.recipe, quantize=self.rates)
        report = search(recipe, self.plan, run=folder_of(self.teacher), out=folder)
        write_record(folder / ALLOCATION, report.allocation)
        drop_checkpoint(folder)


def _searched(teacher: FloatStage, setting: Setting, budget_bytes: int) -> Stage:
    fields = {**setting.search, "budget_bytes": budget_bytes, "choices": list(setting.choices)}
    plan = build(SearchPlan, fields, where="search", error=RecipeError)
    return SearchStage(teacher, method_recipe(setting, SEARCH, formats={}), plan)


def _measured(metric: str) -> Callable[[FloatStage, Setting, int], Stage]:
    def stage(teacher: FloatStage, setting: Setting, budget_bytes: int) -> Stage:
        sensitivity = SensitivityStage(
            teacher, metric, setting.choices, setting.sensitivity_windows
        )
        return MeasuredStage(sensitivity, budget_bytes)

    return stage


def _manual(teacher: FloatStage, setting: Setting, budget_bytes: int) -> Stage:
    return ManualStage(teacher.recipe, setting.choices, budget_bytes)


ALLOCATIONS: Mapping[str, Callable[[FloatStage, Setting, int], Stage]] = MappingProxyType(
    {"manual": _manual, "kl": _measured("kl"), "hessian": _measured("hessian"), "nas": _searched}
)
