"""Lattices as k2's tensors: where words go, what the final arcs carry, which columns there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantized_lm.lattice.formats.base import names_of
from quantized_lm.lattice.formats.k2_tensors import FINAL, LM_KEY, K2Tensors
from quantized_lm.lattice.formats.numbers import require_single
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.ragged import first_or_zero, join, lengths_of, ragged
from quantized_lm.lattice.reshape import one_word_arcs, wordless_final_arcs

_OWN = ("labels", "aux_labels")  # attributes that are k2's two kinds of labels
_RESERVED = ("arcs", "scores", "lm_scores", "symbols", "id", "ids")


def tensors_of(lattices: Sequence[Lattice], *, kinds: str) -> K2Tensors:
    """An Fsa of one lattice, an FsaVec of several. scores = am + graph, lm_scores = graph.

    Args:
        kinds: numpy's kinds of the attributes that the format holds, as in "iufb".

    Raises:
        LatticeError: a score is too large for float32.
    """
    shared = shared_attributes(lattices, kinds)
    has_labels = all(_is_labels(one.arc_attributes.get("labels")) for one in lattices)
    has_aux = not has_labels and "aux_labels" in shared
    parts = [_shaped(lattice, has_labels=has_labels, has_aux=has_aux) for lattice in lattices]
    labels, aux = _labels(parts, has_labels=has_labels)
    columns: dict[str, Column | Ragged] = {}
    if aux is not None:
        columns["aux_labels"] = aux
    if any(one.graph.any() or LM_KEY in one.header for one in parts):
        columns["lm_scores"] = np.concatenate([require_single(one.graph) for one in parts])
    for name in shared:
        if name not in _OWN or (name == "aux_labels" and has_aux):
            columns[name] = join([one.arc_attributes[name] for one in parts])
    if has_aux:
        columns["aux_labels"] = _mark_final(columns["aux_labels"], _into_final(parts))
    ends = [np.stack([one.src, one.dst], axis=1) for one in parts]
    table = np.concatenate([np.concatenate(ends), labels[:, None]], axis=1).astype(np.int32)
    scores = np.concatenate([require_single(_total(one)) for one in parts])
    if len(parts) == 1:
        return K2Tensors(table, scores, columns)
    splits = np.cumsum([0, *(one.num_arcs for one in parts)])
    states = np.cumsum([0, *(one.num_states for one in parts)])
    return K2Tensors(table, scores, columns, splits, states)


def shared_attributes(lattices: Sequence[Lattice], kinds: str) -> list[str]:
    """Names of the attributes that all lattices have, of one kind that the format holds."""
    found = [
        {
            (name, isinstance(column, Ragged), _kind(column))
            for name, column in one.arc_attributes.items()
            if _kind(column) in kinds and name not in _RESERVED
        }
        for one in lattices
    ]
    return sorted(name for name, _, _ in set.intersection(*found))


def dropped(lattices: Sequence[Lattice], kinds: str, *, holds_symbols: bool) -> list[str]:
    """What `tensors_of` leaves out."""
    shared = shared_attributes(lattices, kinds) if lattices else []
    names = names_of(lattices, keeps=lambda name, _: name in shared)
    if not holds_symbols and any(lattice.symbols for lattice in lattices):
        names.append("symbols")
    return names


def _shaped(lattice: Lattice, *, has_labels: bool, has_aux: bool) -> Lattice:
    if has_labels:
        return lattice
    return wordless_final_arcs(one_word_arcs(lattice) if has_aux else lattice)


def _labels(
    parts: Sequence[Lattice], *, has_labels: bool
) -> tuple[NDArray[np.int64], Column | Ragged | None]:
    """(E,) labels, and aux_labels where the words are on them."""
    words = join([one.words for one in parts])
    assert isinstance(words, Ragged)
    into = _into_final(parts)
    lengths = lengths_of(words)
    first = np.where(into, FINAL, first_or_zero(words))
    is_plain = not (lengths > 1).any() and not lengths[into].any()
    if not has_labels:
        return first, None if is_plain else _with_final_marks(words, into)
    given = join([one.arc_attributes["labels"] for one in parts])
    assert not isinstance(given, Ragged)
    labels = np.where(into, FINAL, np.maximum(given.astype(np.int64), 0))
    return labels, first.astype(np.int32) if is_plain else _with_final_marks(words, into)


def _with_final_marks(words: Ragged, into: NDArray[np.bool_]) -> Ragged:
    """The same lists with -1 behind those of arcs into a final state."""
    values = np.insert(words.values, words.splits[1:][into], FINAL).astype(np.int32)
    return ragged(lengths_of(words) + into, values)


def _mark_final(aux: Column | Ragged, into: NDArray[np.bool_]) -> Column | Ragged:
    return aux if isinstance(aux, Ragged) else np.where(into, FINAL, aux).astype(aux.dtype)


def _into_final(parts: Sequence[Lattice]) -> NDArray[np.bool_]:
    return np.concatenate([one.dst == one.final for one in parts])


def _total(lattice: Lattice) -> NDArray[np.float64]:
    """The sum of am and graph; am itself, with the sign of its zero, where graph is 0."""
    return np.where(lattice.graph == 0, lattice.am, lattice.am + lattice.graph)


def _is_labels(column: Column | Ragged | None) -> bool:
    return isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in "iu"


def _kind(column: Column | Ragged) -> str:
    return (column.values if isinstance(column, Ragged) else column).dtype.kind
