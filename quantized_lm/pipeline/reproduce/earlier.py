"""Rows of an earlier report whose stages are gone, beside what is measured now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from quantized_lm.errors import DataError
from quantized_lm.pipeline.reproduce.plan import Plan
from quantized_lm.pipeline.reproduce.report import Report, with_cells
from quantized_lm.pipeline.reproduce.results import MEASURED, NOT_RUN, CellResult
from quantized_lm.records import read_record

_Finding = TypeVar("_Finding")


def read_earlier(folder: Path, plan: Plan) -> Report | None:
    """What an earlier run wrote there; None if it was of another table, or nothing is there.

    Raises:
        DataError: it cannot be read, or counts word errors that this plan leaves out.
    """
    path = folder / "report.json"
    if not path.exists():
        return None
    try:
        found = read_record(Report, path, what="report of an earlier run")
    except DataError as error:
        raise DataError(f"{error}; delete {folder} to begin anew") from None
    if (found.task, found.size) != (plan.task.name, plan.size):
        return None
    if (found.lists or found.lattices) and not plan.has_speech:
        raise DataError(f"{path} tells of lists or lattices too; give --speech, or another folder")
    return found


def with_earlier(report: Report, earlier: Report, plan: Plan) -> Report:
    """Take over rows that were measured earlier and are not run here.

    A row is taken if its stages are the same, so of the same text, recipes and lists, and if where
    both reports have its float model that is the same to the last bit: differences are to it.
    """
    known = {(cell.architecture, cell.row): cell for cell in earlier.cells}
    same = [
        name for name in plan.benches if _is_same_float(name, report.cells, earlier.cells, plan)
    ]
    made = f"{earlier.origin.made_at}; {earlier.origin.machine}"
    cells = tuple(
        _taken(cell, known.get((cell.architecture, cell.row)), made)
        if cell.architecture in same
        else cell
        for cell in report.cells
    )
    # Pictures of all rows are only of use where all of them still count.
    whole = [name for name in same if _keeps_all(name, cells, earlier.cells)]
    rows = {(cell.architecture, cell.row) for cell in cells if cell.status == MEASURED}
    comparisons = [
        one
        for one in earlier.comparisons
        if {(one.architecture, one.mixed), (one.architecture, one.uniform)} <= rows
    ]
    return replace(
        with_cells(report, cells, plan.task),
        comparisons=_joined(
            report.comparisons,
            comparisons,
            whole,
            lambda one: (one.architecture, one.mixed, one.uniform),
        ),
        allocations=_joined(
            report.allocations,
            earlier.allocations,
            whole,
            lambda one: (one.architecture, one.metric, one.compression, one.has_rates),
        ),
        sensitivities=_joined(
            report.sensitivities,
            earlier.sensitivities,
            whole,
            lambda one: (one.architecture, one.metric),
        ),
        learning=_joined(report.learning, earlier.learning, whole, lambda one: (one.architecture,)),
    )


def rows_left_out(joined: Report, earlier: Report) -> list[str]:
    """Rows that were measured earlier and that the joined report has not."""
    measured = {(cell.architecture, cell.row) for cell in joined.cells if cell.numbers is not None}
    return [
        f"{cell.architecture} {cell.row}"
        for cell in earlier.cells
        if cell.numbers is not None and (cell.architecture, cell.row) not in measured
    ]


def _is_same_float(
    architecture: str, cells: Sequence[CellResult], earlier: Sequence[CellResult], plan: Plan
) -> bool:
    teacher = plan.benches[architecture].teacher
    (row,) = {
        cell.row.name
        for cell in plan.cells
        if cell.architecture == architecture and cell.model is teacher
    }
    found = [
        cell.numbers
        for cell in (*cells, *earlier)
        if (cell.architecture, cell.row) == (architecture, row)
    ]
    losses = {(one.dev.nll, one.test.nll) for one in found if one is not None}
    return len(losses) <= 1


def _taken(cell: CellResult, before: CellResult | None, made: str) -> CellResult:
    if cell.status != NOT_RUN or before is None or before.status != MEASURED:
        return cell
    is_same = (before.stages, before.measured_in) == (cell.stages, cell.measured_in)
    return replace(before, made=before.made or made) if is_same else cell


def _keeps_all(
    architecture: str, cells: Sequence[CellResult], earlier: Sequence[CellResult]
) -> bool:
    now = {cell.row: cell for cell in cells if cell.architecture == architecture}
    return all(
        cell.row in now and now[cell.row].stages == cell.stages
        for cell in earlier
        if cell.architecture == architecture and cell.status == MEASURED
    )


def _joined(
    now: Sequence[_Finding],
    earlier: Sequence[_Finding],
    architectures: Sequence[str],
    subject: Callable[[_Finding], tuple[object, ...]],
) -> tuple[_Finding, ...]:
    """Those of now, and the earlier ones of some architectures that tell of something else.

    Args:
        subject: what a finding is about, the architecture first.
    """
    told = {subject(one) for one in now}
    kept = [one for one in earlier if subject(one)[0] in architectures]
    return (*now, *(one for one in kept if subject(one) not in told))
