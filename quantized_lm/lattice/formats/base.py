"""What a lattice format is, and what all readers share: limits and errors that name an arc."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError, NoPathError, TooManyArcsError
from quantized_lm.lattice.lattice import Lattice, Ragged

WORDS_ON = ("auto", "labels", "aux_labels")


@dataclass(frozen=True)
class ReadOptions:
    """What a file does not say of itself.

    Attributes:
        symbols: words by id, for formats that have ids alone.
        max_arcs: a lattice with more is refused before it is built.
        words_on: which labels of k2 are words; auto takes aux_labels where there are any.
        lm_scores_scale: what k2's lm_scores were multiplied with; graph = lm_scores / it.
        keeps_empty: whether an empty lattice of an archive is one without arcs; else it is refused.

    Raises:
        LatticeError: one is out of range.
    """

    symbols: Mapping[int, str] | None = None
    max_arcs: int = 100_000
    words_on: str = "auto"
    lm_scores_scale: float = 1.0
    keeps_empty: bool = False

    def __post_init__(self) -> None:
        if self.words_on not in WORDS_ON:
            known = ", ".join(WORDS_ON)
            raise LatticeError(f"words_on is {self.words_on!r}; need one of {known}")
        if not (self.lm_scores_scale > 0 and math.isfinite(self.lm_scores_scale)):
            raise LatticeError(f"lm_scores_scale is {self.lm_scores_scale}; need a number above 0")


@dataclass(frozen=True)
class LatticeFormat:
    """One file format.

    Attributes:
        name: as on a command line.
        media_type: as in a Content-Type.
        suffixes: how its files' names end, each also with ".gz" behind it.
        patterns: names of its files in a folder of which is said that it has this format.
        holds_many: whether one file may hold several lattices.
        read: lattices of a file's bytes; raises LatticeError.
        write: the reverse; raises LatticeError where the lattices cannot be said in the format.
        drops: what `write` would leave out, by name.
    """

    name: str
    media_type: str
    suffixes: tuple[str, ...]
    holds_many: bool
    read: Callable[[bytes, ReadOptions], list[Lattice]]
    write: Callable[[Sequence[Lattice]], bytes]
    drops: Callable[[Sequence[Lattice]], list[str]]
    patterns: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Places:
    """Where the arcs, or the final states, of a lattice stand in its source.

    Attributes:
        prefix: begins each message, such as "utterance a1: ".
        lines: the line of each arc, from 1; None where there are no lines.
        first_arc: index of the first arc, where the source counts through several lattices.
        rows: the index of each arc, where it is not 0, 1, 2, ...
        noun: "arc" or "final".
    """

    prefix: str = ""
    lines: Sequence[int] | None = field(default=None, repr=False)
    first_arc: int = 0
    noun: str = "arc"
    rows: Sequence[int] | None = field(default=None, repr=False)

    def error(self, arc: int, message: str) -> LatticeError:
        """The error of one arc."""
        line = f"line {self.lines[arc]}: " if self.lines is not None else ""
        number = (arc if self.rows is None else self.rows[arc]) + self.first_arc
        return LatticeError(
            f"{self.prefix}{line}{self.noun} {number} {message}", pointer=f"/{self.noun}s/{number}"
        )

    def at(self, rows: NDArray[np.int64]) -> Places:
        """The places of some of the rows."""
        lines = [self.lines[row] for row in rows.tolist()] if self.lines is not None else None
        return replace(self, lines=lines, rows=rows.tolist())

    def refuse(self, bad: NDArray[np.bool_], message: str, *values: NDArray[np.generic]) -> None:
        """Raise for the first arc that is bad, if one is; `values` fill the message's braces."""
        if bad.any():
            arc = int(np.argmax(bad))
            raise self.error(arc, message.format(*(value[arc] for value in values)))


def empty_lattice(utterance: str, options: ReadOptions, prefix: str = "") -> Lattice:
    """What an archive holds of an utterance whose decoding failed: no arcs.

    Raises:
        NoPathError: the options want none.
    """
    if not options.keeps_empty:
        raise NoPathError(f"{prefix}the lattice is empty; need at least one path", pointer="/arcs")
    nothing = np.zeros(0)
    states = nothing.astype(np.int32)
    words = Ragged(np.zeros(1, np.int32), states)
    return Lattice(states, states, words, nothing, nothing, options.symbols, utterance=utterance)


def require_count(count: int, options: ReadOptions, prefix: str = "") -> None:
    """Refuse a lattice of no arcs or of too many."""
    if count < 1:
        raise LatticeError(
            f"{prefix}the lattice has no arcs; need at least one path", pointer="/arcs"
        )
    if count > options.max_arcs:
        raise TooManyArcsError(
            f"{prefix}the lattice has {count} arcs; need at most {options.max_arcs}",
            pointer="/arcs",
        )


def require_scores(places: Places, name: str, scores: NDArray[np.floating]) -> None:
    """Refuse NaN and +infinity."""
    bad = np.isnan(scores) | (scores == np.inf)
    places.refuse(bad, f"has {name} {{}}; need a number or -inf", scores)


def require_some(lattices: Sequence[Lattice], *, at_most_one: bool, name: str) -> None:
    """Refuse to write no lattice, or several where the format holds one."""
    if not lattices:
        raise LatticeError(f"there is no lattice to write as {name}; need at least one")
    if at_most_one and len(lattices) > 1:
        raise LatticeError(f"{name} holds one lattice; got {len(lattices)}: write a file for each")


def names_of(lattices: Sequence[Lattice], *, keeps: Callable[[str, object], bool]) -> list[str]:
    """Arc attributes, state attributes and header fields that are not kept, sorted.

    Args:
        keeps: says of an arc attribute, by name and column, whether the format holds it.
    """
    names = set()
    for lattice in lattices:
        names |= {
            name for name, column in lattice.arc_attributes.items() if not keeps(name, column)
        }
        names |= {f"state {name}" for name in lattice.state_attributes}
        names |= {f"header {name}" for name in lattice.header if not name.startswith("_")}
    return sorted(names)
