"""One lattice of a Kaldi text archive: CompactLattice or Lattice, weights as costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.automaton import (
    About,
    Automaton,
    Finals,
    from_lattice,
    to_lattice,
)
from quantized_lm.lattice.formats.base import Places, ReadOptions
from quantized_lm.lattice.formats.fst_text import LARGEST_STATE, FstText, Table, split_rows
from quantized_lm.lattice.formats.labels import ids_or_words, is_id
from quantized_lm.lattice.formats.numbers import parse_floats, parse_ints, texts_of
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.ragged import ragged, take_lists
from quantized_lm.lattice.reshape import labels_of

# Where this is set, arcs have a label of their own beside the word, and no alignment.
ARCS_KEY = "_kaldi_arcs"
LATTICE = "lattice"
_INFINITY = "Infinity"


@dataclass(frozen=True)
class _Weights:
    """Costs, and the transition ids behind them."""

    graph: NDArray[np.float64]
    acoustic: NDArray[np.float64]
    alignment: Ragged


def parse_lattice(
    lines: Sequence[str], utterance: str, options: ReadOptions, first_line: int
) -> Lattice:
    """A lattice out of the lines below its utterance id.

    CompactLattice: "src dst word graph,acoustic,1_2_3"; Lattice: "src dst label word
    graph,acoustic"; a weight that is not there is one. Words may be ids or words.

    Raises:
        LatticeError: it is malformed.
    """
    prefix = f"utterance {utterance}: "
    text = split_rows(lines, options, prefix=prefix, first_line=first_line)
    arcs, places = text.arcs, text.arcs.places
    is_compact = _is_compact(text)
    columns = (3, 4) if is_compact else (4, 5)
    for at, row in enumerate(arcs.rows):
        if len(row) not in columns:
            raise places.error(at, f"has {len(row)} columns; need {columns[0]} or {columns[1]}")
    weights = _weights(arcs, columns[0], is_compact=is_compact)
    words = ids_or_words(arcs.column(columns[0] - 1), options, places)
    labels: dict[str, Column | Ragged] = {"alignment": weights.alignment}
    if not is_compact:
        ids = parse_ints(arcs.column(2), places, "label")
        labels = {"labels": ids.astype(np.int32)}
    source = Automaton(
        start=text.start,
        src=parse_ints(arcs.column(0), places, "state", most=LARGEST_STATE),
        dst=parse_ints(arcs.column(1), places, "state", most=LARGEST_STATE),
        words=words.ids,
        am=0.0 - weights.acoustic,
        graph=0.0 - weights.graph,
        finals=_finals(text.finals, is_compact=is_compact),
        attributes=labels,
    )
    header = {} if is_compact else {ARCS_KEY: LATTICE}
    return to_lattice(source, About(options, places, words.symbols, header, utterance))


def lattice_text(lattice: Lattice) -> str:
    """The lines of one lattice, without its utterance id and the empty line behind it."""
    is_compact = lattice.header.get(ARCS_KEY) != LATTICE
    keeps = ("alignment",) if is_compact else ("labels",)
    source = from_lattice(lattice, keeps=keeps)
    words = source.words.tolist()
    alignment = source.attributes.get("alignment")
    weights = _weight_texts(source.graph, source.am, alignment if is_compact else None)
    if not is_compact:
        labels = label_column(source)
        words = [f"{label} {word}" for label, word in zip(labels.tolist(), words, strict=True)]
        weights = [weight[:-1] for weight in weights]
    lines = [
        f"{src} {dst} {word} {weight}\n"
        for src, dst, word, weight in zip(
            source.src.tolist(), source.dst.tolist(), words, weights, strict=True
        )
    ]
    finals = source.finals
    ends = _weight_texts(finals.graph, finals.am, finals.alignment)
    end = slice(None) if is_compact else slice(-1)
    lines += [
        f"{state} {weight[end]}\n"
        for state, weight in zip(finals.state.tolist(), ends, strict=True)
    ]
    return "".join(lines)


def label_column(source: Automaton) -> NDArray[np.int64]:
    """(E,) labels of arcs beside their words; 0 where there are none, or for k2's -1."""
    return np.maximum(labels_of(source.attributes, len(source.src)), 0)


def _is_compact(text: FstText) -> bool:
    """Known from the fourth column of an arc, or else from a weight with two commas."""
    for row in text.arcs.rows:
        if len(row) != 4:
            return len(row) < 4
        return "," in row[3]
    return not text.finals.rows or any(row[-1].count(",") == 2 for row in text.finals.rows)


def _finals(table: Table, *, is_compact: bool) -> Finals:
    weights = _weights(table, 1, is_compact=is_compact)
    state = parse_ints(table.column(0), table.places, "state", most=LARGEST_STATE)
    real = np.flatnonzero((weights.graph != np.inf) | (weights.acoustic != np.inf))
    return Finals(
        state[real],
        0.0 - weights.acoustic[real],
        0.0 - weights.graph[real],
        take_lists(weights.alignment, real),
        table.places.at(real),
    )


def _weights(table: Table, index: int, *, is_compact: bool) -> _Weights:
    """Weights of the rows; those too short to have one have weight one."""
    one = "0,0," if is_compact else "0,0"
    parts = [(row[index] if len(row) > index else one).split(",") for row in table.rows]
    need = "graph,acoustic,transition_ids" if is_compact else "graph,acoustic"
    for at, part in enumerate(parts):
        if len(part) != need.count(",") + 1:
            raise table.places.error(at, f"has weight {','.join(part)[:40]!r}; need {need}")
    graph = parse_floats([part[0] for part in parts], table.places, "graph cost")
    acoustic = parse_floats([part[1] for part in parts], table.places, "acoustic cost")
    ids = [part[2] for part in parts] if is_compact else [""] * len(parts)
    return _Weights(graph, acoustic, _alignment(ids, table.places))


def _alignment(texts: Sequence[str], places: Places) -> Ragged:
    """Lists out of "1_2_3"."""
    lengths = [text.count("_") + 1 if text else 0 for text in texts]
    joined = "_".join([text for text in texts if text])
    flat = joined.split("_") if joined else []
    try:
        values = np.array(list(map(int, flat)), np.int64)
    except (ValueError, OverflowError):
        values = np.array([0 if is_id(text) else -1 for text in flat])
    bad = (values < 0) | (values > 2**31 - 1)
    if bad.any():
        at = int(np.repeat(np.arange(len(texts)), lengths)[np.argmax(bad)])
        raise places.error(at, f"has transition ids {texts[at][:40]!r}; need whole numbers")
    return ragged(lengths, values.astype(np.int32))


def _weight_texts(
    graph: NDArray[np.float64], am: NDArray[np.float64], alignment: Column | Ragged | None
) -> list[str]:
    costs = zip(texts_of(0.0 - graph, _INFINITY), texts_of(0.0 - am, _INFINITY), strict=True)
    if not isinstance(alignment, Ragged) or not len(alignment.values):
        return [f"{first},{second}," for first, second in costs]
    values, splits = list(map(str, alignment.values.tolist())), alignment.splits.tolist()
    return [
        f"{first},{second},{'_'.join(values[begin:end])}"
        for (first, second), begin, end in zip(costs, splits[:-1], splits[1:], strict=True)
    ]


def require_words(utterance: str) -> str:
    """The utterance id, if an archive can have it.

    Raises:
        LatticeError: it is empty or has a space in it.
    """
    if utterance.split() != [utterance]:
        raise LatticeError(
            f"the utterance id is {utterance!r}; a Kaldi archive needs one without spaces",
            pointer="/id",
        )
    return utterance
