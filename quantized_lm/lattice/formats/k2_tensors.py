"""k2's tensors and lattices: what JSON, safetensors, .pt and text of k2 have in common.

An Fsa's arcs are int32 (E, 4): source, destination, label, and the bits of a float32 score. An
FsaVec's are one row of int32: n, 0, n + 1 splits of states, n + 1 splits of arcs, and the arcs,
whose states count from 0 in each Fsa. Source: k2, csrc/fsa.h and python/csrc/torch/fsa.cu.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import Places, ReadOptions, require_count
from quantized_lm.lattice.lattice import Column, Lattice, Ragged, require_valid
from quantized_lm.lattice.ragged import at_most_one, lengths_of, ragged, take

LM_KEY = "_lm_scores"  # in the header of a lattice that has them, though all are zero
FINAL = -1
_NO_SPLITS: NDArray[np.int64] = np.zeros(0, np.int64)


@dataclass(frozen=True)
class K2Tensors:
    """Arcs of one Fsa, or of the Fsas of an FsaVec one below the other.

    Attributes:
        ends: (E, 3) int32 source, destination, label.
        scores: (E,) float32.
        columns: what else there is for every arc: aux_labels, lm_scores, ...
        arc_splits, state_splits: (n + 1,) of an FsaVec; empty for an Fsa.
    """

    ends: NDArray[np.int32]
    scores: NDArray[np.float32]
    columns: Mapping[str, Column | Ragged]
    arc_splits: NDArray[np.int64] = field(default_factory=lambda: _NO_SPLITS)
    state_splits: NDArray[np.int64] = field(default_factory=lambda: _NO_SPLITS)

    @property
    def is_vector(self) -> bool:
        """Whether it is an FsaVec."""
        return len(self.arc_splits) > 0

    def arcs(self) -> NDArray[np.int32]:
        """(E, 4) int32, or the row of an FsaVec."""
        bits = self.scores.astype(np.float32).view(np.int32)
        arcs = np.concatenate([self.ends, bits[:, None]], axis=1)
        if not self.is_vector:
            return arcs
        head = [[len(self.arc_splits) - 1, 0], self.state_splits, self.arc_splits]
        return np.concatenate([*head, arcs.reshape(-1)]).astype(np.int32)


@dataclass(frozen=True)
class Whole:
    """What belongs to a file of k2 tensors as a whole."""

    options: ReadOptions
    symbols: Mapping[int, str] | None = None
    ids: Sequence[str] = ()


def tensors_of_arcs(
    arcs: NDArray[np.generic], columns: Mapping[str, Column | Ragged], options: ReadOptions
) -> K2Tensors:
    """Take arcs apart.

    Raises:
        LatticeError: they are not int32, of another shape, too many, or another column has another
            length.
    """
    if arcs.dtype != np.int32:
        raise LatticeError(f"arcs are {arcs.dtype}; need int32", pointer="/arcs")
    if arcs.ndim == 2 and arcs.shape[1] == 4:
        splits = states = _NO_SPLITS
        table = np.ascontiguousarray(arcs).view(np.int32)
    elif arcs.ndim == 1:
        states, splits, table = _parse_vector(arcs.view(np.int32), options)
    else:
        raise LatticeError(
            f"arcs have shape {arcs.shape}; need (E, 4), or one row of an FsaVec", pointer="/arcs"
        )
    if not len(splits):
        require_count(len(table), options)
    scores = np.ascontiguousarray(table[:, 3]).view(np.float32)
    tensors = K2Tensors(table[:, :3], scores, columns, splits, states)
    require_lengths(tensors)
    return tensors


def lists_of(name: str, splits: Column, values: Column) -> Ragged:
    """Lists out of two tensors.

    Raises:
        LatticeError: they are of another dtype or shape.
    """
    if splits.ndim != 1 or not len(splits) or splits.dtype != np.int32 or values.ndim != 1:
        raise LatticeError(
            f"{name} has row splits {splits.dtype} {splits.shape} and values {values.shape}; need "
            "int32 (E + 1,) and one row",
            pointer=f"/{name}",
        )
    return Ragged(splits.astype(np.int32), values)


def require_lengths(tensors: K2Tensors) -> None:
    """Refuse a column that is not of one entry per arc, or lists with bad splits."""
    count = len(tensors.ends)
    for name, column in tensors.columns.items():
        length = len(column) if not isinstance(column, Ragged) else len(column.splits) - 1
        if length != count:
            raise LatticeError(f"{name} has {length} entries for {count} arcs", pointer=f"/{name}")
        if isinstance(column, Ragged):
            splits = column.splits
            fits = splits[0] == 0 and splits[-1] == len(column.values)
            if not fits or (np.diff(splits) < 0).any():
                raise LatticeError(
                    f"{name} has row splits that do not ascend from 0 to its "
                    f"{len(column.values)} values",
                    pointer=f"/{name}",
                )


def lattices_of(tensors: K2Tensors, whole: Whole) -> list[Lattice]:
    """One lattice for each Fsa.

    Raises:
        LatticeError: one is no valid k2 lattice; says which k2 function makes it one.
    """
    if not tensors.is_vector:
        utterance = whole.ids[0] if whole.ids else ""
        return [_to_lattice(tensors, whole, utterance, Places())]
    if whole.ids and len(whole.ids) != len(tensors.arc_splits) - 1:
        raise LatticeError(
            f"there are {len(whole.ids)} ids for {len(tensors.arc_splits) - 1} lattices",
            pointer="/ids",
        )
    lattices = []
    for index, (begin, end) in enumerate(
        zip(tensors.arc_splits[:-1].tolist(), tensors.arc_splits[1:].tolist(), strict=True)
    ):
        rows = np.arange(begin, end)
        part = K2Tensors(
            tensors.ends[rows],
            tensors.scores[rows],
            {name: take(column, rows) for name, column in tensors.columns.items()},
        )
        places = Places(f"lattice {index}: ", first_arc=begin)
        require_count(end - begin, whole.options, places.prefix)
        states = int(tensors.state_splits[index + 1] - tensors.state_splits[index])
        last = int(part.ends[:, 1].max())
        if last != states - 1:
            raise LatticeError(
                f"{places.prefix}has {states} states, and its last arc ends at {last}; "
                "call k2.connect",
                pointer="/arcs",
            )
        utterance = whole.ids[index] if whole.ids else ""
        lattices.append(_to_lattice(part, whole, utterance, places))
    return lattices


def _parse_vector(
    row: NDArray[np.int32], options: ReadOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """State splits, arc splits and arcs (E, 4) of an FsaVec."""
    count = int(row[0]) if len(row) > 1 and row[1] == 0 else 0
    if count < 1 or len(row) < 2 * count + 4:
        raise LatticeError(
            "arcs are one row, but not that of an FsaVec of at least one Fsa", pointer="/arcs"
        )
    states = row[2 : count + 3].astype(np.int64)
    splits = row[count + 3 : 2 * count + 4].astype(np.int64)
    for name, values in (("states", states), ("arcs", splits)):
        if values[0] != 0 or (np.diff(values) < 0).any():
            raise LatticeError(f"row splits of {name} do not ascend from 0", pointer="/arcs")
    rest = row[2 * count + 4 :]
    if len(rest) != 4 * splits[-1]:
        raise LatticeError(
            f"arcs have {len(rest)} numbers behind the splits; need {4 * splits[-1]}",
            pointer="/arcs",
        )
    require_count(max(int(np.diff(splits).max()), 1), options)
    return states, splits, rest.reshape(-1, 4)


def _to_lattice(tensors: K2Tensors, whole: Whole, utterance: str, places: Places) -> Lattice:
    src, dst, labels = (np.ascontiguousarray(column) for column in tensors.ends.T)
    _require_fsa(src, dst, labels, places)
    columns = dict(tensors.columns)
    am, graph, header = _scores(tensors.scores, columns.pop("lm_scores", None), whole, places)
    words, attributes = _words(labels, dst, columns, whole.options, places)
    symbols = whole.options.symbols if whole.symbols is None else whole.symbols
    if symbols is not None:
        _require_known(words, symbols, places)
    return require_valid(
        Lattice(
            src=src,
            dst=dst,
            words=words,
            am=am,
            graph=graph,
            symbols=symbols,
            arc_attributes=attributes,
            header=header,
            utterance=utterance,
        )
    )


def _require_fsa(
    src: NDArray[np.int32], dst: NDArray[np.int32], labels: NDArray[np.int32], places: Places
) -> None:
    final = int(dst.max())
    places.refuse(src < 0, "starts at state {}; need 0 or more", src)
    falls = np.diff(src, prepend=src[:1]) < 0
    places.refuse(falls, "starts at state {}, below the arc before it; sort arcs by source", src)
    places.refuse(
        dst <= src, "goes from state {} to {}; call k2.top_sort, and no cycle is allowed", src, dst
    )
    if final > len(src):
        places.refuse(
            dst == final, f"ends at state {{}}, too many for {len(src)} arcs; call k2.connect", dst
        )
    states = np.arange(final + 1)
    lost = ~np.isin(states, dst)
    lost[0] = False
    places.refuse(lost[src], "starts at state {}, which nothing reaches; call k2.connect", src)
    stuck = ~np.isin(states, src)
    stuck[final] = False
    places.refuse(
        stuck[dst] & (labels == FINAL),
        f"ends at state {{}}, a second final state beside {final}; need one, the last",
        dst,
    )
    places.refuse(stuck[dst], "ends at state {}, which no arc leaves; call k2.connect", dst)
    if lost.any() or stuck[0]:
        state = 0 if stuck[0] else int(np.argmax(lost))
        raise LatticeError(
            f"{places.prefix}state {state} has no arcs; call k2.connect", pointer="/arcs"
        )
    _require_final_labels("label", labels, dst, places)


def _require_final_labels(
    name: str, labels: NDArray[np.signedinteger[Any]], dst: NDArray[np.int32], places: Places
) -> None:
    final = dst == dst.max()
    places.refuse(
        final & (labels != FINAL), f"ends at the final state with {name} {{}}; need -1", labels
    )
    places.refuse(
        ~final & (labels < 0),
        f"has {name} {{}}, and does not end at the final state; need 0 or more",
        labels,
    )


def _scores(
    scores: NDArray[np.float32], lm_scores: Column | Ragged | None, whole: Whole, places: Places
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, str]]:
    """am, graph, and the header that says that there were lm_scores."""
    total = scores.astype(np.float64)
    bad = np.isnan(total) | (total == np.inf)
    places.refuse(bad, "has score {}; need a number or -inf", scores)
    if lm_scores is None:
        return total, np.zeros(len(total)), {}
    if isinstance(lm_scores, Ragged) or lm_scores.ndim != 1 or lm_scores.dtype.kind not in "fiu":
        raise LatticeError("lm_scores are no numbers; need float32 (E,)", pointer="/lm_scores")
    graph = lm_scores.astype(np.float64)
    bad = np.isnan(graph) | (graph == np.inf) | (np.isinf(graph) & ~np.isinf(total))
    places.refuse(
        bad, "has lm_score {} and score {}; need numbers, or -inf of both", lm_scores, scores
    )
    am = total.copy()
    np.subtract(total, graph, out=am, where=np.isfinite(total))
    header = {} if graph.any() else {LM_KEY: "given"}
    return am, graph / whole.options.lm_scores_scale, header


def _words(
    labels: NDArray[np.int32],
    dst: NDArray[np.int32],
    columns: Mapping[str, Column | Ragged],
    options: ReadOptions,
    places: Places,
) -> tuple[Ragged, dict[str, Column | Ragged]]:
    """Words of each arc, and the other columns."""
    attributes = dict(columns)
    aux = attributes.get("aux_labels")
    if options.words_on == "aux_labels" and aux is None:
        raise LatticeError(
            "words are to be on aux_labels, but there are none", pointer="/aux_labels"
        )
    if aux is None or options.words_on == "labels":
        return at_most_one(labels.astype(np.int64)), attributes
    del attributes["aux_labels"]
    attributes["labels"] = labels
    raw = aux.values if isinstance(aux, Ragged) else aux
    if raw.dtype.kind != "i" or raw.ndim != 1:
        raise LatticeError(
            f"aux_labels are {raw.dtype} {raw.shape}; need int32", pointer="/aux_labels"
        )
    values = raw.astype(np.int64)
    too_large = values > 2**31 - 1
    if not isinstance(aux, Ragged):
        places.refuse(too_large, "has aux_label {}; need less than 2^31", values)
        _require_final_labels("aux_label", values, dst, places)
        return at_most_one(values), attributes
    arc = np.repeat(np.arange(len(dst)), lengths_of(aux))
    is_final = dst[arc] == dst.max()
    bad = too_large | (values < FINAL) | ((values == FINAL) & ~is_final)
    _refuse_value(bad, arc, values, places, "but needs 0 or more, and -1 at the final state alone")
    kept = values > 0
    lengths = np.bincount(arc[kept], minlength=len(dst))
    return ragged(lengths, values[kept].astype(np.int32)), attributes


def _require_known(words: Ragged, symbols: Mapping[int, str], places: Places) -> None:
    known = np.fromiter(symbols, np.int64, len(symbols))
    arc = np.repeat(np.arange(len(words.splits) - 1), lengths_of(words))
    bad = ~np.isin(words.values, known)
    _refuse_value(bad, arc, words.values, places, "which is not in the symbol table")


def _refuse_value(
    bad: NDArray[np.bool_],
    arc: NDArray[np.int64],
    values: NDArray[np.generic],
    places: Places,
    need: str,
) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        raise places.error(int(arc[at]), f"has word {values[at]}, {need}")
