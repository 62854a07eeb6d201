"""The report of a task: everything that was found, as one value. Files are made of it alone."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from quantized_lm.machine import processor_name
from quantized_lm.pipeline.allocate import measure_of, read_allocation
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.reproduce.choices import SensitivityStage
from quantized_lm.pipeline.reproduce.kept import KeptStage
from quantized_lm.pipeline.reproduce.models import ALLOCATION, ArtifactStage
from quantized_lm.pipeline.reproduce.plan import Cell, Plan
from quantized_lm.pipeline.reproduce.results import (
    CellResult,
    Comparison,
    Numbers,
    Results,
    TargetResult,
    is_reached,
    target_results,
)
from quantized_lm.pipeline.reproduce.sizing import num_parameters
from quantized_lm.pipeline.reproduce.store import Stage, Store
from quantized_lm.pipeline.reproduce.task import LatticeSet, ListSet, Target, Task
from quantized_lm.pipeline.sensitivity import SensitivityReport, read_report
from quantized_lm.pipeline.start import start_revision
from quantized_lm.quant.formats import Grid, get_format


@dataclass(frozen=True)
class ArchitectureInfo:
    """A column of the table.

    Attributes:
        model: its sizes. parameters: of the float model.
        steps: of the float model's training. start: the packed model that it started from, by name
            and hash; empty for none.
    """

    architecture: str
    model: dict[str, Any]
    parameters: int
    float_bytes: int
    steps: int
    start: str


@dataclass(frozen=True)
class ChosenFormats:
    """A finished allocation.

    Attributes:
        metric: what chose. formats: by tensor name. bits: per weight, likewise: those of the rate
            where one was chosen, else those of a code.
        has_rates: which of the two.
    """

    architecture: str
    metric: str
    compression: float
    formats: dict[str, str]
    bits: dict[str, float]
    has_rates: bool


@dataclass(frozen=True)
class MeasuredCosts:
    """Finished sensitivities; costs are nats per token by tensor and format."""

    architecture: str
    metric: str
    windows: int
    tokens: int
    costs: dict[str, dict[str, float]]


@dataclass(frozen=True)
class LearningCurve:
    """A finished float model on its way.

    Attributes:
        tokens: seen. perplexity: per token of dev, at each measurement.
        kept_tokens: seen at each measurement of word errors: of weights that were kept, and at the
            end. wer: on lists, by their name, of all utterances. first_pass_wer: the decoder's.
    """

    architecture: str
    tokens: tuple[int, ...]
    perplexity: tuple[float, ...]
    kept_tokens: tuple[int, ...]
    wer: dict[str, tuple[float, ...]]
    first_pass_wer: dict[str, float]


@dataclass(frozen=True)
class Origin:
    """What the numbers were made on and of.

    Attributes:
        text: sha256 of each file.
        stage_seconds: spent on all stages.
    """

    made_at: str
    machine: str
    versions: dict[str, str]
    text: dict[str, str]
    stage_seconds: float


@dataclass(frozen=True)
class Report:
    """Everything.

    Attributes:
        lists, lattices: what was rescored; empty without speech data.
        goals: the task's targets. reached: each of them, over all architectures; None is open.
    """

    task: str
    title: str
    size: str
    protocol: str
    size_note: str
    origin: Origin
    architectures: tuple[ArchitectureInfo, ...]
    cells: tuple[CellResult, ...]
    lists: tuple[ListSet, ...]
    lattices: tuple[LatticeSet, ...]
    targets: tuple[TargetResult, ...]
    goals: tuple[Target, ...]
    reached: tuple[bool | None, ...]
    comparisons: tuple[Comparison, ...]
    allocations: tuple[ChosenFormats, ...]
    sensitivities: tuple[MeasuredCosts, ...]
    learning: tuple[LearningCurve, ...]


def make_report(plan: Plan, store: Store, *, now: datetime) -> Report:
    """Of the stages that are finished.

    Raises:
        DataError: what a stage left is damaged.
    """
    results = Results(plan, store)
    report = Report(
        task=plan.task.name,
        title=plan.task.title,
        size=plan.size,
        protocol=plan.task.protocol,
        size_note=plan.task.size_notes.get(plan.size, ""),
        origin=_origin(plan, results, now),
        architectures=tuple(_architectures(plan)),
        cells=(),
        lists=plan.task.lists if plan.has_speech else (),
        lattices=plan.task.lattices if plan.has_speech else (),
        targets=(),
        goals=plan.task.targets,
        reached=(),
        comparisons=tuple(results.comparisons()),
        allocations=tuple(_allocations(plan, store)),
        sensitivities=tuple(_sensitivities(plan, store)),
        learning=tuple(_learning(plan, store, results)),
    )
    return with_cells(report, results.cells, plan.task)


def with_cells(report: Report, cells: Sequence[CellResult], task: Task) -> Report:
    """The report with these cells, and what they mean for the task's targets.

    Targets of architectures that the report leaves out are open.
    """
    targets = target_results(task.targets, task.architectures, cells)
    return replace(
        report,
        cells=tuple(cells),
        targets=tuple(targets),
        reached=tuple(is_reached(target, targets) for target in report.goals),
    )


def _architectures(plan: Plan) -> list[ArchitectureInfo]:
    return [
        ArchitectureInfo(
            architecture=name,
            model=bench.teacher.recipe.model,
            parameters=num_parameters(bench.teacher.recipe),
            float_bytes=bench.float_bytes,
            steps=bench.teacher.recipe.train.steps,
            start=_start(bench.teacher.recipe),
        )
        for name, bench in plan.benches.items()
    ]


def _start(recipe: Recipe) -> str:
    return f"{recipe.start}@sha256:{start_revision(recipe)[:16]}" if recipe.start else ""


def _origin(plan: Plan, results: Results, now: datetime) -> Origin:
    text = next(iter(plan.benches.values())).teacher.text
    return Origin(
        made_at=now.isoformat(timespec="seconds"),
        machine=f"{processor_name()}, {torch.get_num_threads()} threads",
        versions={
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{name: version(name) for name in ("secondpass", "torch", "tokenizers")},
        },
        text=dict(text.files),
        stage_seconds=round(results.total_seconds(), 1),
    )


def _allocations(plan: Plan, store: Store) -> list[ChosenFormats]:
    """One for each metric and budget of an architecture."""
    found = {}
    for cell in plan.cells:
        stage = _allocation_stage(cell)
        if stage is not None and stage.key not in found and store.is_done(stage):
            allocation = read_allocation(store.folder(stage) / ALLOCATION)
            found[stage.key] = ChosenFormats(
                cell.architecture,
                allocation.metric,
                allocation.compression,
                allocation.formats,
                allocation.rates
                or {
                    name: get_format(Grid.parse(choice).format).stored_bits
                    for name, choice in allocation.formats.items()
                },
                bool(allocation.rates),
            )
    return list(found.values())


def _allocation_stage(cell: Cell) -> Stage | None:
    return cell.model.student.allocation if isinstance(cell.model, ArtifactStage) else None


def _sensitivities(plan: Plan, store: Store) -> list[MeasuredCosts]:
    stages = {
        stage.key: (cell.architecture, stage)
        for cell in plan.cells
        for stage in cell.model.with_inputs()
        if isinstance(stage, SensitivityStage)
    }
    return [
        _costs(architecture, read_report(stage.report(store.folder)))
        for architecture, stage in stages.values()
        if store.is_done(stage)
    ]


def _learning(plan: Plan, store: Store, results: Results) -> Iterator[LearningCurve]:
    for name, bench in plan.benches.items():
        if store.is_done(bench.teacher):
            rows = bench.teacher.history(store.folder)
            kept = sorted(_kept(name, plan, store, results), key=lambda pair: pair[0])
            on_lists = [(one.name, one.every) for _, numbers in kept for one in numbers.lists]
            wer: dict[str, tuple[float, ...]] = {}
            for lists, errors in on_lists:
                wer[lists] = (*wer.get(lists, ()), round(errors.wer, 5))
            yield LearningCurve(
                architecture=name,
                tokens=tuple(int(row["tokens"]) for row in rows),
                perplexity=tuple(round(math.exp(row["dev_nll"]), 2) for row in rows),
                kept_tokens=tuple(tokens for tokens, _ in kept),
                wer=wer,
                first_pass_wer={
                    lists: round(errors.first_pass_wer, 5) for lists, errors in on_lists
                },
            )


def _kept(
    architecture: str, plan: Plan, store: Store, results: Results
) -> Iterator[tuple[int, Numbers]]:
    """Tokens seen and what was measured, of the float model on its way and at its end."""
    for cell, result in zip(plan.cells, results.cells, strict=True):
        if cell.architecture == architecture and result.numbers and result.numbers.lists:
            if isinstance(cell.model, KeptStage):
                yield cell.model.tokens(store.folder), result.numbers
            elif cell.model is plan.benches[architecture].teacher:
                yield int(cell.model.history(store.folder)[-1]["tokens"]), result.numbers


def _costs(architecture: str, report: SensitivityReport) -> MeasuredCosts:
    costs = {
        name: {choice: cost.mean for choice, cost in row.items()}
        for name, row in report.costs.items()
    }
    return MeasuredCosts(architecture, measure_of(report), report.windows, report.tokens, costs)
