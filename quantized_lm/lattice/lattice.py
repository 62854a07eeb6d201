"""A word lattice as arrays. Knows no file format, no LM and no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError

Column = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Ragged:
    """A list of values for each of E arcs.

    Attributes:
        splits: (E + 1,) int32, list e is values[splits[e] : splits[e + 1]].
        values: (V,).
    """

    splits: NDArray[np.int32]
    values: Column

    def row(self, index: int) -> Column:
        """The values of one arc."""
        return self.values[self.splits[index] : self.splits[index + 1]]


@dataclass(frozen=True, eq=False)
class Lattice:
    """An acyclic automaton whose arcs carry words and scores.

    States are numbered in topological order. State 0 is the start and the last one is the only
    final state, which no arc leaves; every state lies on a path between them. A failed decoding may
    have left no arcs at all, which `require_valid` refuses.

    Attributes:
        src, dst: (E,) int32 states, src < dst; src ascends.
        words: the ids of each arc's words, often one or none; ids are positive.
        am, graph: (E,) float64, nats, higher is better: the acoustic score and that of the
            decoder's LM and graph. -infinity is allowed, NaN and +infinity are not.
        symbols: the words by id; None where the source has ids alone.
        arc_attributes: what else the source has for every arc: (E,) arrays, or lists.
        state_attributes: (S,) arrays, such as `time_s`.
        header: what else the source says of the whole, by name.
        utterance: id of the utterance; "" where there is none.
    """

    src: NDArray[np.int32]
    dst: NDArray[np.int32]
    words: Ragged
    am: NDArray[np.float64]
    graph: NDArray[np.float64]
    symbols: Mapping[int, str] | None = None
    arc_attributes: Mapping[str, Column | Ragged] = field(
        default_factory=lambda: MappingProxyType({})
    )
    state_attributes: Mapping[str, Column] = field(default_factory=lambda: MappingProxyType({}))
    header: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    utterance: str = ""

    @property
    def num_arcs(self) -> int:
        """E."""
        return len(self.src)

    @property
    def num_states(self) -> int:
        """S."""
        return int(self.dst.max(initial=-1)) + 1

    @property
    def final(self) -> int:
        """The final state."""
        return self.num_states - 1


def require_valid(lattice: Lattice) -> Lattice:
    """The lattice itself, if it is what its class says.

    Raises:
        LatticeError: it is not; the pointer names the first bad arc ("/arcs/17") or column.
    """
    _require_columns(lattice)
    src, dst = lattice.src, lattice.dst
    _refuse(src < 0, "arc {} starts at state {}; need 0 or more", src)
    _refuse(np.diff(src, prepend=0) < 0, "arc {} starts at state {}, before the arc above it", src)
    _refuse(dst <= src, "arc {} ends at state {}, not after its start; a lattice has no cycle", dst)
    _require_connected(lattice)
    for name, scores in (("am", lattice.am), ("graph", lattice.graph)):
        bad = np.isnan(scores) | (scores == np.inf)
        _refuse(bad, f"arc {{}} has {name} score {{}}; need a number or -inf", scores)
    _refuse_words(lattice)
    return lattice


def _require_columns(lattice: Lattice) -> None:
    count = len(lattice.src)
    if not count:
        raise LatticeError("the lattice has no arcs; need at least one path", pointer="/arcs")
    columns: dict[str, Column | Ragged] = {
        "dst": lattice.dst,
        "am": lattice.am,
        "graph": lattice.graph,
        "words": lattice.words,
        **lattice.arc_attributes,
    }
    for name, column in columns.items():
        length = len(column.splits) - 1 if isinstance(column, Ragged) else len(column)
        if length != count:
            raise LatticeError(f"{name} has {length} entries for {count} arcs", pointer=f"/{name}")
    for name, column in lattice.state_attributes.items():
        if len(column) != lattice.num_states:
            raise LatticeError(
                f"{name} has {len(column)} entries for {lattice.num_states} states",
                pointer=f"/{name}",
            )


def _require_connected(lattice: Lattice) -> None:
    """Each state but the first is reached, and each but the last is left."""
    if lattice.final > lattice.num_arcs:  # before anything as long as the number of states is made
        at = int(np.argmax(lattice.dst))
        raise LatticeError(
            f"arc {at} ends at state {lattice.final}, but {lattice.num_arcs} arcs connect at most "
            f"{lattice.num_arcs + 1} states",
            pointer=f"/arcs/{at}",
        )
    states = np.arange(lattice.num_states)
    lost = np.setdiff1d(states[1:], lattice.dst)
    if len(lost):
        raise LatticeError(f"state {lost[0]} cannot be reached from the start", pointer="/arcs")
    stuck = np.setdiff1d(states[:-1], lattice.src)
    if len(stuck):
        raise LatticeError(
            f"no arc leaves state {stuck[0]}, which is not the last; need one final state",
            pointer="/arcs",
        )


def _refuse_words(lattice: Lattice) -> None:
    ids = lattice.words.values.astype(np.int64)
    arc = np.repeat(np.arange(lattice.num_arcs), np.diff(lattice.words.splits))
    bad = ids <= 0
    if lattice.symbols is not None:
        known = np.fromiter(lattice.symbols, np.int64, len(lattice.symbols))
        bad |= ~np.isin(ids, known)
    if bad.any():
        at = int(np.argmax(bad))
        raise LatticeError(
            f"arc {arc[at]} has word {ids[at]}, which is not in the symbol table",
            pointer=f"/arcs/{arc[at]}",
        )


def _refuse(bad: NDArray[np.bool_], message: str, values: Column) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        raise LatticeError(message.format(at, values[at]), pointer=f"/arcs/{at}")
