"""Run a plan cell by cell: one stage at a time, nothing twice, a failed cell stops no other."""

from __future__ import annotations

from collections.abc import Sequence

from quantized_lm.errors import SecondpassError
from quantized_lm.pipeline.reproduce.plan import Cell
from quantized_lm.pipeline.reproduce.store import Stage, Store
from quantized_lm.pipeline.reproduce.view import View


def run_cells(cells: Sequence[Cell], store: Store, view: View) -> dict[str, str]:
    """Run what is missing, in the order given.

    Returns:
        Why cells failed, by cell name.
    """
    view.begin(cells, store)
    failed_stages: dict[str, str] = {}
    failures: dict[str, str] = {}
    for cell in cells:
        reason = _run_cell(cell, store, view, failed_stages)
        if reason is not None:
            failures[cell.name] = reason
        view.end_cell(cell, reason)
    return failures


def _run_cell(cell: Cell, store: Store, view: View, failed_stages: dict[str, str]) -> str | None:
    """Returns why it failed. A stage that failed for an earlier cell is not tried again."""
    for stage in cell.stages():
        if stage.key not in failed_stages and not store.is_done(stage):
            view.begin_stage(cell, stage)
            _run_stage(stage, store, failed_stages)
        if stage.key in failed_stages:
            return failed_stages[stage.key]
    return None


def _run_stage(stage: Stage, store: Store, failed_stages: dict[str, str]) -> None:
    try:
        store.run(stage)
    except SecondpassError as error:
        failed_stages[stage.key] = " ".join(str(error).split())
