"""Stages that choose a format for every matrix: by hand, by what each costs, or by search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.allocate import allocate, manual_allocation, rated_allocation
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.recipe import QuantizeRecipe
from quantized_lm.pipeline.reproduce.models import ALLOCATION, FloatStage, drop_checkpoint
from quantized_lm.pipeline.reproduce.sizing import float_bytes_of
from quantized_lm.pipeline.reproduce.store import FolderOf, Stage
from quantized_lm.pipeline.reproduce.task import Setting, method_recipe
from quantized_lm.pipeline.rounding import RATED_CHOICES
from quantized_lm.pipeline.search import SearchPlan, search
from quantized_lm.pipeline.sensitivity import METRICS, measure_sensitivity, read_report
from quantized_lm.pipeline.sizes import SizeTable, coded_size_table
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


@dataclass(frozen=True)
class Budget:
    """How many bytes the file of a mixed model may have, each matrix in its smallest coding.

    Attributes:
        compression: float32 bytes over these; or, where 0,
        bytes_of: the format that all matrices together take as many bytes in.
    """

    compression: float = 0.0
    bytes_of: str = ""

    def __str__(self) -> str:
        return f"{self.compression:g}x" if self.compression else f"the bytes of {self.bytes_of}"

    def formats(self, choices: Sequence[str]) -> tuple[str, ...]:
        """Those whose sizes are needed to choose among some."""
        return tuple(dict.fromkeys((*choices, *filter(None, (self.bytes_of,)))))

    def size_bytes(self, sizes: SizeTable) -> int:
        """In bytes, by a table that holds `formats`."""
        if self.compression:
            return int(sizes.float_bytes / self.compression)
        return sizes.total(dict.fromkeys(sizes.packed, self.bytes_of))


@dataclass(frozen=True, eq=False)
class MeasuredStage(Stage):
    """The cheapest formats within a budget, by a metric."""

    sensitivity: SensitivityStage
    budget: Budget

    kind = "allocation"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The sensitivities."""
        return (self.sensitivity,)

    @property
    def content(self) -> tuple[object, ...]:
        """The budget."""
        return ("coded", self.budget)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"allocate {self.budget} by {self.sensitivity.metric}"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Allocate."""
        report = read_report(self.sensitivity.report(folder_of))
        choices = self.sensitivity.choices
        sizes = _coded_sizes(self.sensitivity.teacher, self.budget.formats(choices), folder_of)
        report = replace(report, sizes=sizes.only(choices))
        budget_bytes = self.budget.size_bytes(sizes)
        write_record(folder / ALLOCATION, allocate(report, budget_bytes=budget_bytes))


@dataclass(frozen=True, eq=False)
class RatesStage(Stage):
    """How many bits the codes of each matrix get, by a metric.

    Attributes:
        at: the format whose costs are compared; "" where they are measured at several rates.
        bits: mean over all weights.
        compression: what the file is to come to.
    """

    sensitivity: SensitivityStage
    at: str
    bits: float
    compression: float

    kind = "allocation"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The sensitivities."""
        return (self.sensitivity,)

    @property
    def content(self) -> tuple[object, ...]:
        """The mean, and what it is divided by."""
        return ("rates", self.at, self.bits)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"allocate {self.bits:g} bits a weight by {self.sensitivity.metric}"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Allocate."""
        report = read_report(self.sensitivity.report(folder_of))
        model = load_teacher(self.sensitivity.teacher.recipe, folder_of(self.sensitivity.teacher))
        weights = {name: model.get_parameter(name).numel() for name in report.costs}
        budget_bytes = int(report.sizes.float_bytes / self.compression)
        allocation = rated_allocation(
            report, weights, at=self.at, bits=self.bits, budget_bytes=budget_bytes
        )
        write_record(folder / ALLOCATION, allocation)


@dataclass(frozen=True, eq=False)
class ManualStage(Stage):
    """What a person would choose."""

    teacher: FloatStage
    choices: tuple[str, ...]
    budget: Budget

    kind = "allocation"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The teacher, whose matrices have sizes once they are coded."""
        return (self.teacher,)

    @property
    def content(self) -> tuple[object, ...]:
        """Choices and budget."""
        return ("manual", "coded", self.choices, self.budget)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"allocate {self.budget} by hand"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Allocate."""
        sizes = _coded_sizes(self.teacher, self.budget.formats(self.choices), folder_of)
        budget_bytes = self.budget.size_bytes(sizes)
        allocation = manual_allocation(sizes.only(self.choices), budget_bytes=budget_bytes)
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


def _coded_sizes(teacher: FloatStage, choices: Sequence[str], folder_of: FolderOf) -> SizeTable:
    return coded_size_table(load_teacher(teacher.recipe, folder_of(teacher)), choices)


def _searched(teacher: FloatStage, setting: Setting, budget: Budget) -> Stage:
    if not budget.compression:
        raise RecipeError("row: a search takes its budget as compression, not bytes_of")
    budget_bytes = int(float_bytes_of(teacher.recipe) / budget.compression)
    fields = {
        **setting.search,
        "budget_bytes": budget_bytes,
        "choices": list(setting.choices),
        "coded": True,
    }
    plan = build(SearchPlan, fields, where="search", error=RecipeError)
    return SearchStage(teacher, method_recipe(setting, SEARCH, formats={}), plan)


def sensitivity_stage(
    teacher: FloatStage, setting: Setting, metric: str, *, at_rates: bool = False
) -> SensitivityStage:
    """The sensitivities that a task asks for.

    Args:
        at_rates: of codes at several rates, instead of the task's formats.

    Raises:
        RecipeError: there is no such metric.
    """
    if metric not in METRICS:
        raise RecipeError(f"row: metric is {metric!r}; need one of {', '.join(METRICS)}")
    choices = RATED_CHOICES if at_rates else setting.choices
    return SensitivityStage(teacher, metric, choices, setting.sensitivity_windows)


def _measured(metric: str) -> Callable[[FloatStage, Setting, Budget], Stage]:
    def stage(teacher: FloatStage, setting: Setting, budget: Budget) -> Stage:
        return MeasuredStage(sensitivity_stage(teacher, setting, metric), budget)

    return stage


def _manual(teacher: FloatStage, setting: Setting, budget: Budget) -> Stage:
    return ManualStage(teacher, setting.choices, budget)


ALLOCATIONS: Mapping[str, Callable[[FloatStage, Setting, Budget], Stage]] = MappingProxyType(
    {"manual": _manual, "kl": _measured("kl"), "hessian": _measured("hessian"), "nas": _searched}
)
