"""Arcs and final weights as OpenFst, Kaldi and HTK have them: any numbers, any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import Places, ReadOptions, require_count, require_scores
from quantized_lm.lattice.lattice import Column, Lattice, Ragged, require_valid
from quantized_lm.lattice.order import arc_on_cycle, topological_order
from quantized_lm.lattice.ragged import at_most_one, join, take_lists
from quantized_lm.lattice.reshape import (
    final_weight_arcs,
    no_lists,
    one_word_arcs,
    take_all,
    word_of_arcs,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Finals:
    """Final states, (F,) each, with their weights and what else stands there."""

    state: Ints
    am: Floats
    graph: Floats
    alignment: Ragged
    places: Places = field(default_factory=Places)


@dataclass(frozen=True)
class Automaton:
    """Arcs with at most one word each, (E,) each, in the order of the source.

    Attributes:
        num_states: states are 0 to num_states - 1; None where they may be any numbers.
        words: ids; 0 is none.
        state_attributes: (num_states,) each.
    """

    start: int
    src: Ints
    dst: Ints
    words: Ints
    am: Floats
    graph: Floats
    finals: Finals
    attributes: Mapping[str, Column | Ragged] = field(default_factory=dict)
    state_attributes: Mapping[str, Column] = field(default_factory=dict)
    num_states: int | None = None


@dataclass(frozen=True)
class About:
    """What belongs to a lattice as a whole, and where its arcs stand."""

    options: ReadOptions
    places: Places
    symbols: Mapping[int, str] | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    utterance: str = ""


def plain_finals(states: Ints, places: Places | None = None) -> Finals:
    """Final states of weight one, which is a score of 0."""
    zeros = np.zeros(len(states))
    return Finals(states, zeros, zeros, no_lists(len(states)), places or Places())


def to_lattice(source: Automaton, about: About) -> Lattice:
    """Number the states topologically, and make final weights arcs into one last state.

    A single final state of weight one that no arc leaves stays as it is.

    Raises:
        LatticeError: there is a cycle, a state off every path, or a bad score or word.
    """
    places = about.places
    require_scores(places, "acoustic score", source.am)
    require_scores(places, "graph score", source.graph)
    _require_finals(source.finals, places.prefix)
    if about.symbols is not None:
        known = np.fromiter(about.symbols, np.int64, len(about.symbols))
        unknown = (source.words > 0) & ~np.isin(source.words, known)
        places.refuse(unknown, "has word {}, which is not in the symbol table", source.words)
    dense, names = _with_dense_states(source)
    closed = _with_one_final(dense)
    require_count(len(closed.src), about.options, places.prefix)
    order = _numbers(closed, np.append(names, -1), places, len(source.src))
    src = order[closed.src]
    rows = np.argsort(src, kind="stable")
    by_number = np.argsort(order)
    return require_valid(
        Lattice(
            src=src[rows].astype(np.int32),
            dst=order[closed.dst][rows].astype(np.int32),
            words=at_most_one(closed.words[rows]),
            am=closed.am[rows],
            graph=closed.graph[rows],
            symbols=about.symbols,
            arc_attributes=take_all(closed.attributes, rows),
            state_attributes={name: c[by_number] for name, c in closed.state_attributes.items()},
            header=about.header,
            utterance=about.utterance,
        )
    )


def from_lattice(lattice: Lattice, *, keeps: tuple[str, ...]) -> Automaton:
    """One word per arc, and final weights for what `final_weight_arcs` says.

    Args:
        keeps: arc attributes to take along; "alignment" may stand with a final weight.
    """
    lattice = one_word_arcs(lattice)
    final = final_weight_arcs(lattice)
    arcs, weights = np.flatnonzero(~final), np.flatnonzero(final)
    attributes = {name: column for name, column in lattice.arc_attributes.items() if name in keeps}
    finals = plain_finals(np.array([lattice.final]))
    if len(weights):
        alignment = attributes.get("alignment")
        finals = Finals(
            lattice.src[weights].astype(np.int64),
            lattice.am[weights],
            lattice.graph[weights],
            take_lists(alignment, weights)
            if isinstance(alignment, Ragged)
            else no_lists(len(weights)),
        )
    return Automaton(
        start=0,
        src=lattice.src[arcs].astype(np.int64),
        dst=lattice.dst[arcs].astype(np.int64),
        words=word_of_arcs(lattice)[arcs],
        am=lattice.am[arcs],
        graph=lattice.graph[arcs],
        finals=finals,
        attributes=take_all(attributes, arcs),
        num_states=lattice.num_states - int(final.any()),
    )


def _require_finals(finals: Finals, prefix: str) -> None:
    if not len(finals.state):
        raise LatticeError(f"{prefix}the lattice has no final state", pointer="/finals")
    require_scores(finals.places, "acoustic score", finals.am)
    require_scores(finals.places, "graph score", finals.graph)
    first = np.unique(finals.state, return_index=True)[1]
    again = ~np.isin(np.arange(len(finals.state)), first)
    finals.places.refuse(again, "is state {}, which has a final weight already", finals.state)


def _with_dense_states(source: Automaton) -> tuple[Automaton, Ints]:
    """States 0, 1, ..., and what the source calls each of them."""
    if source.num_states is not None:
        return source, np.arange(source.num_states)
    counts = np.cumsum([len(source.src), len(source.dst), len(source.finals.state)])
    numbers = np.concatenate([source.src, source.dst, source.finals.state, [source.start]])
    names, dense = np.unique(numbers, return_inverse=True)
    src, dst, finals, start = np.split(dense, counts)
    dense_finals = replace(source.finals, state=finals)
    changed = replace(
        source, start=int(start[0]), src=src, dst=dst, finals=dense_finals, num_states=len(names)
    )
    return changed, names


def _with_one_final(source: Automaton) -> Automaton:
    """Final weights as arcs into one more state, unless one state is final and that is all."""
    finals, last = source.finals, source.num_states or 0
    is_plain = len(finals.state) == 1 and not (
        finals.am.any() or finals.graph.any() or len(finals.alignment.values)
    )
    if is_plain and len(source.src) and not np.isin(finals.state, source.src).any():
        return source
    extra = len(finals.state)
    attributes = take_all(
        source.attributes, np.append(np.arange(len(source.src)), np.full(extra, -1))
    )
    if "alignment" in attributes:
        attributes["alignment"] = join([source.attributes["alignment"], finals.alignment])
    states = np.append(np.arange(last), finals.state[:1])
    return replace(
        source,
        src=np.append(source.src, finals.state),
        dst=np.append(source.dst, np.full(extra, last)),
        words=np.append(source.words, np.zeros(extra, np.int64)),
        am=np.append(source.am, finals.am),
        graph=np.append(source.graph, finals.graph),
        attributes=attributes,
        state_attributes={name: c[states] for name, c in source.state_attributes.items()},
        finals=plain_finals(np.array([last])),
        num_states=last + 1,
    )


def _numbers(closed: Automaton, names: Ints, places: Places, listed: int) -> Ints:
    """The topological number of each state; refuses cycles and states off every path.

    Args:
        listed: how many arcs the source lists; those behind them are final weights.
    """
    count = closed.num_states or 0
    src, dst = closed.src, closed.dst
    order = topological_order(src, dst, count)
    if (order < 0).any():
        arc = arc_on_cycle(src, dst, order)
        message = f"from state {names[src[arc]]} to {names[dst[arc]]} is part of a cycle"
        raise places.error(arc, f"{message}; a lattice has none")
    lost = np.bincount(dst, minlength=count) == 0
    lost[closed.start] = False
    _refuse_state(
        lost, src[:listed], f"the start, state {names[closed.start]}, does not reach", places, names
    )
    stuck = np.bincount(src, minlength=count) == 0
    stuck[closed.finals.state] = False
    _refuse_state(stuck, dst[:listed], "reaches no final state", places, names)
    return order


def _refuse_state(
    bad: NDArray[np.bool_], ends: Ints, why: str, places: Places, names: Ints
) -> None:
    if bad.any():
        state = int(np.argmax(bad))
        places.refuse(ends == state, f"is at state {names[state]}, which {why}")
        raise LatticeError(
            f"{places.prefix}there is a state {names[state]}, which {why}", pointer="/arcs"
        )
