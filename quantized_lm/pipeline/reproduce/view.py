"""What a person sees while a plan runs, on standard error: cells, stages, times.

Stages draw their own bars below; these are whole lines, so that a log keeps them too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from quantized_lm.pipeline.reproduce.plan import Cell
from quantized_lm.pipeline.reproduce.store import Stage, Store


class View:
    """Lines about progress.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started = clock()
        self._total = self._at = 0

    def begin(self, cells: Sequence[Cell], store: Store) -> None:
        """What there is to do."""
        missing: set[str] = set()
        table = Table()
        table.add_column("row")
        architectures = list(dict.fromkeys(cell.architecture for cell in cells))
        for architecture in architectures:
            table.add_column(architecture, justify="right")
        counts = {}
        for cell in cells:
            stages = cell.stages()
            left = [stage.key for stage in stages if not store.is_done(stage)]
            missing.update(left)
            counts[cell.row.name, cell.architecture] = f"{len(stages) - len(left)}/{len(stages)}"
        for name in dict.fromkeys(cell.row.name for cell in cells):
            table.add_row(name, *(counts.get((name, one), "") for one in architectures))
        self._total = len(missing)
        self._say(f"{store.root}: stages that are done, of those that each cell takes")
        self._console.print(table)
        self._say(f"{self._total} stages to run, the rest is cached")

    def begin_stage(self, cell: Cell, stage: Stage) -> None:
        """Which stage of which cell starts now."""
        self._at += 1
        self._say(f"stage {self._at} of {self._total}, {cell.name}: {stage.title}")

    def end_cell(self, cell: Cell, reason: str | None) -> None:
        """A cell is complete, or failed."""
        self._say(f"{cell.name}: " + ("complete" if reason is None else f"FAILED: {reason}"))

    def _say(self, message: str) -> None:
        minutes, seconds = divmod(int(self._clock() - self._started), 60)
        hours, minutes = divmod(minutes, 60)
        self._console.print(
            f"{hours}:{minutes:02}:{seconds:02} {message}", highlight=False, markup=False
        )
