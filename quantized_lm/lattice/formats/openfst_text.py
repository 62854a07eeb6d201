"""OpenFst text: "src dst input [output] [weight]" and "state [weight]"; weights are costs."""

from __future__ import annotations

from collections.abc import Sequence

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
from quantized_lm.lattice.formats.base import ReadOptions, names_of, require_some
from quantized_lm.lattice.formats.fst_text import LARGEST_STATE, Table, split_rows
from quantized_lm.lattice.formats.kaldi_text import label_column
from quantized_lm.lattice.formats.labels import are_ids, ids_or_words
from quantized_lm.lattice.formats.numbers import parse_floats, parse_ints, texts_of
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.reshape import no_lists

_INFINITY = "Infinity"


def read(data: bytes, options: ReadOptions) -> list[Lattice]:
    """One lattice; all of a weight becomes the acoustic score. Words are output labels.

    Four columns are a label and a weight if some line has three or a weight that is no whole
    number, and an input and an output label if some of the last are words or all are as the input.
    Input labels that differ from the words become the attribute "labels", if they are ids.

    Raises:
        LatticeError: it is malformed, or four columns of whole numbers could be either.
    """
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise LatticeError("the lattice is no UTF-8 text; need OpenFst's text form") from None
    text = split_rows(lines, options)
    arcs, places = text.arcs, text.arcs.places
    has_output = _has_output(arcs)
    columns = (4, 5) if has_output else (3, 4)
    for at, row in enumerate(arcs.rows):
        if len(row) not in columns:
            raise places.error(at, f"has {len(row)} columns; need {columns[0]} or {columns[1]}")
    words = ids_or_words(arcs.column(columns[0] - 1), options, places)
    inputs = arcs.column(2)
    attributes: dict[str, Column | Ragged] = {}
    if has_output and inputs != arcs.column(3) and are_ids(inputs):
        attributes["labels"] = parse_ints(inputs, places, "label").astype(np.int32)
    source = Automaton(
        start=text.start,
        src=parse_ints(arcs.column(0), places, "state", most=LARGEST_STATE),
        dst=parse_ints(arcs.column(1), places, "state", most=LARGEST_STATE),
        words=words.ids,
        am=0.0 - _costs(arcs, columns[0]),
        graph=np.zeros(len(arcs.rows)),
        finals=_finals(text.finals),
        attributes=attributes,
    )
    return [to_lattice(source, About(options, places, words.symbols))]


def write(lattices: Sequence[Lattice]) -> bytes:
    """Five columns, so that fstcompile needs no option; am + graph is negated to be the weight."""
    require_some(lattices, at_most_one=True, name="openfst-text")
    source = from_lattice(lattices[0], keeps=("labels",))
    inputs = label_column(source) if "labels" in source.attributes else source.words
    weights = texts_of(0.0 - (source.am + source.graph), _INFINITY)
    columns = [c.tolist() for c in (source.src, source.dst, inputs, source.words)]
    lines = [
        f"{src}\t{dst}\t{label}\t{word}\t{weight}\n"
        for src, dst, label, word, weight in zip(*columns, weights, strict=True)
    ]
    finals = source.finals
    ends = texts_of(0.0 - (finals.am + finals.graph), _INFINITY)
    lines += [
        f"{state}\t{weight}\n" for state, weight in zip(finals.state.tolist(), ends, strict=True)
    ]
    return "".join(lines).encode()


def drops(lattices: Sequence[Lattice]) -> list[str]:
    """All but words, labels and the sum of the scores."""

    def keeps(name: str, column: object) -> bool:
        return name == "labels" and not isinstance(column, Ragged)

    names = names_of(lattices, keeps=keeps)
    if any(lattice.symbols for lattice in lattices):
        names.append("symbols")
    if any(lattice.graph.any() for lattice in lattices):
        names.append("graph scores apart from acoustic scores")
    return names


def _has_output(arcs: Table) -> bool:
    """Whether there are two labels before the weight."""
    sizes = {len(row) for row in arcs.rows}
    if max(sizes, default=3) != 4:
        return max(sizes, default=3) > 4
    last = [row[3] for row in arcs.rows if len(row) == 4]
    if 3 in sizes or any(map(_is_weight, last)):
        return False
    inputs = arcs.column(2)
    if not are_ids(last) or last == inputs:
        return True
    at = next(i for i, (own, other) in enumerate(zip(last, inputs, strict=True)) if own != other)
    raise arcs.places.error(
        at,
        f"has {last[at]!r} in column 4, and no line tells whether that is an output label or a "
        f"weight; need a weight as {last[at]}.0, or 0 in a column 5",
    )


def _is_weight(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not text.isdigit()


def _costs(table: Table, index: int) -> NDArray[np.float64]:
    texts = [row[index] if len(row) > index else "0" for row in table.rows]
    return parse_floats(texts, table.places, "weight")


def _finals(table: Table) -> Finals:
    """Final states; those of infinite weight are none."""
    costs = _costs(table, 1)
    state = parse_ints(table.column(0), table.places, "state", most=LARGEST_STATE)
    real = np.flatnonzero(costs != np.inf)
    zeros, none = np.zeros(len(real)), no_lists(len(real))
    return Finals(state[real], 0.0 - costs[real], zeros, none, table.places.at(real))
