"""Lattices with the same paths, words and scores, in the shape that a format asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.order import topological_order
from quantized_lm.lattice.ragged import (
    Rows,
    at_most_one,
    first_or_zero,
    lengths_of,
    ragged,
    take,
    take_lists,
)


def one_word_arcs(lattice: Lattice) -> Lattice:
    """Each arc of several words becomes a chain of arcs; its first has the scores and the rest."""
    counts = lengths_of(lattice.words)
    if counts.max(initial=0) <= 1:
        return lattice
    pieces = np.maximum(counts, 1)
    arc = np.repeat(np.arange(lattice.num_arcs), pieces)
    is_first = np.diff(arc, prepend=-1) > 0
    is_last = np.append(is_first[1:], True)
    between = lattice.num_states - 1 + np.cumsum(~is_first)  # the state before a later piece
    src = np.where(is_first, lattice.src[arc], between)
    dst = np.where(is_last, lattice.dst[arc], np.append(between[1:], 0))
    states = np.append(np.arange(lattice.num_states), lattice.dst[arc[~is_first]]).astype(np.int64)
    words = np.zeros(len(arc), np.int64)
    words[counts[arc] > 0] = lattice.words.values
    rows = np.where(is_first, arc, -1)
    split = replace(
        lattice,
        src=src.astype(np.int32),
        dst=dst.astype(np.int32),
        words=at_most_one(words),
        am=np.where(is_first, lattice.am[arc], 0.0),
        graph=np.where(is_first, lattice.graph[arc], 0.0),
        arc_attributes=take_all(lattice.arc_attributes, rows),
        state_attributes={name: c[states] for name, c in lattice.state_attributes.items()},
    )
    return renumbered(split, len(states))


def renumbered(lattice: Lattice, count: int) -> Lattice:
    """The same with its `count` states in topological order and its arcs sorted by source."""
    order = topological_order(lattice.src.astype(np.int64), lattice.dst.astype(np.int64), count)
    src = order[lattice.src]
    rows = np.argsort(src, kind="stable")
    by_number = np.argsort(order)
    return replace(
        lattice,
        src=src[rows].astype(np.int32),
        dst=order[lattice.dst][rows].astype(np.int32),
        words=take_lists(lattice.words, rows),
        am=lattice.am[rows],
        graph=lattice.graph[rows],
        arc_attributes=take_all(lattice.arc_attributes, rows),
        state_attributes={name: c[by_number] for name, c in lattice.state_attributes.items()},
    )


def wordless_final_arcs(lattice: Lattice) -> Lattice:
    """Where an arc into the final state has words, one more state and a free arc to it."""
    into = lattice.dst == lattice.final
    if not lengths_of(lattice.words)[into].any():
        return lattice
    states, final = np.append(np.arange(lattice.num_states), lattice.final), lattice.final
    rows = np.append(np.arange(lattice.num_arcs), -1)
    return replace(
        lattice,
        src=np.append(lattice.src, np.int32(final)),
        dst=np.append(lattice.dst, np.int32(final + 1)),
        words=take_lists(lattice.words, rows),
        am=np.append(lattice.am, 0.0),
        graph=np.append(lattice.graph, 0.0),
        arc_attributes=take_all(lattice.arc_attributes, rows),
        state_attributes={name: c[states] for name, c in lattice.state_attributes.items()},
    )


def final_weight_arcs(lattice: Lattice) -> NDArray[np.bool_]:
    """(E,) which arcs a format with final weights can say as weights: all into the last, or none.

    They have no words, no labels and no score of -infinity, and no two leave one state.
    """
    into: NDArray[np.bool_] = lattice.dst == lattice.final
    plain: NDArray[np.bool_] = (
        (lengths_of(lattice.words) == 0)
        & (labels_of(lattice.arc_attributes, lattice.num_arcs) <= 0)
        & np.isfinite(lattice.am)
        & np.isfinite(lattice.graph)
    )
    sources = lattice.src[into]
    if bool(plain[into].all()) and len(np.unique(sources)) == len(sources):
        return into
    return np.zeros(lattice.num_arcs, np.bool_)


def labels_of(attributes: Mapping[str, Column | Ragged], count: int) -> NDArray[np.int64]:
    """(E,) the attribute "labels"; zeros where there is none of whole numbers."""
    labels = attributes.get("labels")
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels.astype(np.int64)
    return np.zeros(count, np.int64)


def take_all(columns: Mapping[str, Column | Ragged], rows: Rows) -> dict[str, Column | Ragged]:
    """Rows of several columns; -1 is an empty row."""
    return {name: take(column, rows) for name, column in columns.items()}


def word_of_arcs(lattice: Lattice) -> NDArray[np.int64]:
    """(E,) the word of each arc, 0 for none; arcs of several words have been split."""
    return first_or_zero(lattice.words)


def no_lists(count: int) -> Ragged:
    """`count` empty lists of int32."""
    return ragged(np.zeros(count, np.int64), np.zeros(0, np.int32))
