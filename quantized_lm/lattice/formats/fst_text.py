"""Lines of an automaton as OpenFst prints them, split into columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import Places, ReadOptions, require_count
from quantized_lm.lattice.formats.numbers import parse_ints

LARGEST_STATE = 2**62


@dataclass(frozen=True)
class Table:
    """Rows of words, and where they stand."""

    rows: list[list[str]]
    places: Places

    def column(self, index: int) -> list[str]:
        """One word of each row."""
        return [row[index] for row in self.rows]


@dataclass(frozen=True)
class FstText:
    """Arcs of three words or more, final states of one or two; the start is in the first line."""

    arcs: Table
    finals: Table
    start: int


def split_rows(
    lines: Sequence[str], options: ReadOptions, *, prefix: str = "", first_line: int = 1
) -> FstText:
    """Columns of an automaton.

    Raises:
        LatticeError: there is no line, or too many arcs.
    """
    arcs: list[list[str]] = []
    finals: list[list[str]] = []
    arc_lines: list[int] = []
    final_lines: list[int] = []
    start = ""
    count = 0
    for number, line in enumerate(lines, start=first_line):
        row = line.split()
        count += len(row) > 2
        if max(count, len(finals)) > options.max_arcs:
            continue  # only counted
        if len(row) > 2:
            arcs.append(row)
            arc_lines.append(number)
        elif row:
            finals.append(row)
            final_lines.append(number)
        start = start or (row[0] if row else "")
    if not start:
        raise LatticeError(f"{prefix}the lattice is empty; need at least one arc", pointer="/arcs")
    require_count(max(count, len(finals), 1), options, prefix)
    return FstText(
        Table(arcs, Places(prefix, arc_lines)),
        Table(finals, Places(prefix, final_lines, noun="final")),
        int(parse_ints([start], Places(prefix), "state", most=LARGEST_STATE)[0]),
    )
