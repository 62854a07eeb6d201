"""k2's text, `k2.utils.to_str_simple(fsa)`: "src dst label [aux_label] score" and the final state.

Ragged labels are "[ 3 4 ]". The score is am + graph; k2's text has no other float columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import Places, ReadOptions, require_count, require_some
from quantized_lm.lattice.formats.k2_lattices import dropped, tensors_of
from quantized_lm.lattice.formats.k2_tensors import K2Tensors, Whole, lattices_of
from quantized_lm.lattice.formats.numbers import parse_floats, parse_ints, single_of, texts_of
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.ragged import ragged

_LISTS = re.compile(r"\[([^\[\]]*)\]")
_LEAST = -1
_LABELS = ("labels", "aux_labels")
_MORE = re.compile(
    r"labels_\d+"
)  # columns of labels behind the second; k2 prints them without their names


def read(data: bytes, options: ReadOptions) -> list[Lattice]:
    """One lattice. The first list, or else the fourth column of five or more, is aux_labels.

    Raises:
        LatticeError: it is no such text, or no valid k2 lattice.
    """
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise LatticeError("the lattice is no ASCII text; need k2's text form") from None
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    texts = [lines[number - 1] for number in numbers]
    if not texts:
        raise LatticeError("the lattice is empty; need at least one arc", pointer="/arcs")
    require_count(len(texts) - 1, options)
    places = Places(lines=numbers)
    columns: dict[str, Column | Ragged] = {}
    if "[" in data.decode("ascii"):
        columns, texts = _lists(texts, places)
    rows = [text.split() for text in texts]
    final = rows.pop()
    width = len(rows[0])
    for at, row in enumerate(rows):
        if len(row) != width or width < 4:
            raise places.error(at, f"has {len(row)} columns; need {max(width, 4)}, as the first")
    by_column = list(zip(*rows, strict=True))
    ends = np.stack(
        [parse_ints(column, places, "label or state", least=_LEAST) for column in by_column[:3]],
        axis=1,
    ).astype(np.int32)
    for index, column in enumerate(by_column[3:-1]):
        name = f"labels_{index + 2}" if "aux_labels" in columns or index else "aux_labels"
        labels = parse_ints(column, places, "label", least=_LEAST)
        columns[name] = labels.astype(np.int32)
    scores = single_of(parse_floats(by_column[-1], places, "score"))
    if len(final) != 1 or final[0] != str(ends[:, 1].max()):
        raise LatticeError(
            f"line {numbers[-1]}: is {' '.join(final)[:40]!r}; need the final state alone, "
            f"{ends[:, 1].max()}",
            pointer="/arcs",
        )
    return lattices_of(K2Tensors(ends, scores, columns), Whole(options))


def write(lattices: Sequence[Lattice]) -> bytes:
    """Scores have the up to 9 digits that make the same float32.

    Raises:
        LatticeError: there are several lattices, or a score is too large for float32.
    """
    require_some(lattices, at_most_one=True, name="k2-text")
    tensors = tensors_of(lattices, kinds="iu")
    names = [name for name in sorted(tensors.columns) if _is_written(name, tensors.columns[name])]
    columns = [list(map(str, column)) for column in tensors.ends.T.tolist()]
    lists = []
    for name in names:
        column = tensors.columns[name]
        if isinstance(column, Ragged):
            lists.append(_list_texts(column))
        else:
            columns.append(list(map(str, column.tolist())))
    columns += [*lists, texts_of(tensors.scores)]
    lines = [" ".join(row) for row in zip(*columns, strict=True)]
    return "\n".join([*lines, f"{tensors.ends[:, 1].max()}\n"]).encode("ascii")


def drops(lattices: Sequence[Lattice]) -> list[str]:
    """Symbols, graph scores apart, and all attributes but labels."""
    names = dropped(lattices, "", holds_symbols=False)
    names = [name for name in names if not (name in _LABELS or _MORE.fullmatch(name))]
    if any(lattice.graph.any() for lattice in lattices):
        names.append("graph scores apart from acoustic scores")
    return names


def _is_written(name: str, column: Column | Ragged) -> bool:
    is_more = _MORE.fullmatch(name) is not None and not isinstance(column, Ragged)
    return name == "aux_labels" or is_more


def _list_texts(column: Ragged) -> list[str]:
    values, splits = list(map(str, column.values.tolist())), column.splits.tolist()
    return [
        "[ " + " ".join(values[begin:end]) + "]"  # k2 1.23 reads no space before the bracket
        for begin, end in pairwise(splits)
    ]


def _lists(texts: Sequence[str], places: Places) -> tuple[dict[str, Column | Ragged], list[str]]:
    """The first list of each arc as aux_labels, and the lines without it."""
    found = []
    rest = []
    for at, text in enumerate(texts[:-1]):
        parts = _LISTS.findall(text)
        if len(parts) != 1:
            raise places.error(at, f"has {len(parts)} lists; need one, as the others")
        found.append(parts[0].split())
        rest.append(_LISTS.sub(" ", text))
    arc = np.repeat(np.arange(len(found)), list(map(len, found)))
    lines = places.at(arc)
    flat = [text for row in found for text in row]
    values = parse_ints(flat, lines, "label", least=_LEAST).astype(np.int32)
    return {"aux_labels": ragged(list(map(len, found)), values)}, [*rest, texts[-1]]
