"""k2's tensors as JSON.

    {"arcs": [[src, dst, label, score], ...], "aux_labels": [...] or [[...], ...],
     "lm_scores": [...], "symbols": {"1": "hello"} or ["<eps>", "hello"], "id": "utt1"}

Lists of lists may also be what k2 makes of them, {"row_splits": [...], "values": [...]}. Other
lists of one entry per arc are carried along, and what is of no such form is refused. The arcs of an
FsaVec are its one row of integers, and "ids" a list. There is no infinity in JSON: a score of
-infinity is the string "-inf".
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import Places, ReadOptions, require_count, require_some
from quantized_lm.lattice.formats.k2_lattices import dropped, tensors_of
from quantized_lm.lattice.formats.k2_tensors import (
    K2Tensors,
    Whole,
    lattices_of,
    lists_of,
    require_lengths,
    tensors_of_arcs,
)
from quantized_lm.lattice.formats.numbers import single_of, texts_of
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.ragged import ragged
from quantized_lm.lattice.symbols import with_one_table

_KINDS = "iufbU"
_OWN = ("arcs", "symbols", "id", "ids")
_VERSION = "labels_version"  # k2's count of changes of the labels
_LISTS = {"row_splits", "values"}
_INFINITY = "-inf"


def read(data: bytes, options: ReadOptions) -> list[Lattice]:
    """One lattice, or those of an FsaVec.

    Raises:
        LatticeError: it is no such JSON, or no valid k2 lattice.
    """

    def refuse(constant: str) -> NoReturn:
        raise LatticeError(f'the JSON holds {constant}; need numbers, or "-inf" for a score')

    try:
        record = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise LatticeError(f"the lattice is no JSON ({error})") from None
    return from_record(record, options)


def from_record(record: object, options: ReadOptions) -> list[Lattice]:
    """The same of JSON that is parsed already."""
    if not isinstance(record, dict):
        raise LatticeError(f"the lattice is a JSON {type(record).__name__}; need an object")
    arcs = record.get("arcs")
    if not isinstance(arcs, list):
        raise LatticeError("there is no list of arcs", pointer="/arcs")
    columns: dict[str, Column | Ragged] = {
        name: _column(name, value)
        for name, value in record.items()
        if name not in (*_OWN, _VERSION) and value is not None
    }
    if arcs and not isinstance(arcs[0], list):
        tensors = tensors_of_arcs(_integers("arcs", arcs, np.int32), columns, options)
    else:
        require_count(len(arcs), options)
        ends, scores = _arcs(arcs)
        tensors = K2Tensors(ends, scores, columns)
        require_lengths(tensors)
    whole = Whole(options, parse_symbols(record.get("symbols")), parse_ids(record))
    return lattices_of(tensors, whole)


def write(lattices: Sequence[Lattice]) -> bytes:
    """One object; float32 scores with up to 9 digits, other numbers with all they have.

    Raises:
        LatticeError: a score is too large for float32.
    """
    require_some(lattices, at_most_one=False, name="k2-json")
    lattices = [_finite(lattice) for lattice in with_one_table(lattices)]
    tensors = tensors_of(lattices, kinds=_KINDS)
    parts = {"arcs": _arcs_text(tensors)}
    for name, column in tensors.columns.items():
        parts[name] = _numbers_text(column) if name == "lm_scores" else _column_text(column)
    symbols = lattices[0].symbols
    if symbols is not None:
        parts["symbols"] = _text({str(symbol): word for symbol, word in symbols.items()})
    ids = [lattice.utterance for lattice in lattices]
    if any(ids):
        parts["id" if len(ids) == 1 else "ids"] = _text(ids[0] if len(ids) == 1 else ids)
    lines = ",\n".join(f"{_text(name)}: {text}" for name, text in parts.items())
    return f"{{{lines}}}\n".encode()


def drops(lattices: Sequence[Lattice]) -> list[str]:
    """States' attributes, headers, and attributes with NaN or infinity."""
    names = dropped([_finite(lattice) for lattice in lattices], _KINDS, holds_symbols=True)
    infinite = {
        name
        for lattice in lattices
        for name in set(lattice.arc_attributes) - set(_finite(lattice).arc_attributes)
    }
    return sorted({*names, *infinite})


def _finite(lattice: Lattice) -> Lattice:
    """The same without attributes that JSON has no numbers for."""

    def is_finite(column: Column | Ragged) -> bool:
        values = column.values if isinstance(column, Ragged) else column
        return values.dtype.kind != "f" or bool(np.isfinite(values.astype(np.float64)).all())

    columns = lattice.arc_attributes.items()
    return replace(
        lattice, arc_attributes={name: column for name, column in columns if is_finite(column)}
    )


def parse_symbols(value: object) -> dict[int, str] | None:
    """Words by id out of {"1": "hello"} or a list; None where there is no table."""
    if value is None:
        return None
    if isinstance(value, list):
        return _listed_symbols(value)
    if not isinstance(value, dict):
        raise LatticeError("symbols are no object and no list", pointer="/symbols")
    symbols = {}
    for key, word in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 11) or not isinstance(word, str):
            raise LatticeError(
                f'symbols have {key[:40]!r}: {reprlib.repr(word)}; need "id": "word"',
                pointer="/symbols",
            )
        symbols[int(key)] = word
    return symbols


def _listed_symbols(words: list[object]) -> dict[int, str]:
    symbols = {}
    for symbol, word in enumerate(words):
        if not isinstance(word, str):
            raise LatticeError(
                f"symbols have {symbol}: {reprlib.repr(word)}; need a word", pointer="/symbols"
            )
        symbols[symbol] = word
    return symbols


def parse_ids(record: Mapping[str, object]) -> list[str]:
    """Utterance ids, [] where there are none."""
    value = record.get("ids", record.get("id", []))
    ids = [value] if isinstance(value, str) else value
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise LatticeError("the id is no string, or the ids no list of strings", pointer="/id")
    return ids


def _arcs(rows: list[Any]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    for at, row in enumerate(rows):
        if type(row) is not list or len(row) != 4:
            raise Places().error(at, f"is {row!r:.60}; need [src, dst, label, score]")
    src, dst, labels, scores = zip(*rows, strict=True)
    ends = np.empty((len(rows), 3), np.int32)
    for index, column in enumerate((src, dst, labels)):
        try:
            ends[:, index] = _integers("arcs", column, np.int32)
        except LatticeError as error:
            raise Places().error(_bad_integer(column), str(error)) from None
    return ends, _scores(scores)


def _scores(values: Sequence[Any]) -> NDArray[np.float32]:
    """(E,) float32; "-inf" is the one string."""
    numbers = [-np.inf if value == _INFINITY else value for value in values]
    single = _single(numbers, lambda at: Places().error(at, f"has score {values[at]!r:.40}"))
    infinite = np.isinf(single)
    for at in np.flatnonzero(infinite).tolist():
        if values[at] != _INFINITY:
            raise Places().error(at, f"has score {values[at]!r:.40}, too large for float32")
    return single


def _lm_scores(values: Sequence[Any]) -> NDArray[np.float32]:
    numbers = [-np.inf if value == _INFINITY else value for value in values]

    def error(at: int) -> LatticeError:
        return LatticeError(
            f"lm_score {at} is {values[at]!r:.40}; need a number of float32",
            pointer=f"/lm_scores/{at}",
        )

    single = _single(numbers, error)
    for at in np.flatnonzero(np.isinf(single)).tolist():
        if values[at] != _INFINITY:
            raise error(at)
    return single


def _single(numbers: Sequence[Any], error: Any) -> NDArray[np.float32]:
    if set(map(type, numbers)) <= {int, float}:
        try:
            return single_of(np.array(numbers, np.float64))
        except OverflowError:
            numbers = [value if abs(value) < 2**200 else None for value in numbers]
    raise error(next(at for at, value in enumerate(numbers) if type(value) not in (int, float)))


def _integers(name: str, values: Sequence[Any], dtype: type[np.signedinteger[Any]]) -> Column:
    at = _bad_integer(values, np.iinfo(dtype).bits)
    if at >= 0:
        raise LatticeError(
            f"{name} hold {values[at]!r:.40}; need whole numbers of {np.iinfo(dtype).bits} bits",
            pointer=f"/{name}/{at}",
        )
    return np.array(values, dtype)


def _bad_integer(values: Sequence[Any], bits: int = 32) -> int:
    """Index of the first value that is no integer of so many bits; -1 where there is none."""
    limit = 2 ** (bits - 1)
    if set(map(type, values)) <= {int} and (
        not values or (-limit <= min(values) and max(values) < limit)
    ):
        return -1
    return next(
        at
        for at, value in enumerate(values)
        if type(value) is not int or not -limit <= value < limit
    )


def _column(name: str, values: object) -> Column | Ragged:
    """Values, or lists of them, in the narrowest dtype that holds them all."""
    if isinstance(values, dict) and set(values) == _LISTS:
        splits, flat = values["row_splits"], values["values"]
        if isinstance(splits, list) and isinstance(flat, list):
            return lists_of(
                name, _integers(f"{name}/row_splits", splits, np.int32), _narrow(name, flat)
            )
    if not isinstance(values, list):
        raise LatticeError(
            f"{name} is {reprlib.repr(values)}; need a list of one entry per arc, as all but "
            f"{', '.join(_OWN)} are",
            pointer=f"/{name}",
        )
    if name == "lm_scores":
        return _lm_scores(values)
    if not values or not isinstance(values[0], list):
        return _narrow(name, values)
    for at, value in enumerate(values):
        if not isinstance(value, list):
            raise LatticeError(f"{name} hold {value!r:.40} among lists", pointer=f"/{name}/{at}")
    flat = [value for row in values for value in row]
    return ragged(np.array(list(map(len, values))), _narrow(name, flat))


def _narrow(name: str, values: list[Any]) -> Column:
    kinds = set(map(type, values))
    if kinds <= {int}:
        is_short = _bad_integer(values) < 0
        return np.array(values, np.int32) if is_short else _integers(name, values, np.int64)
    if kinds in ({bool}, {str}):
        return np.array(values)
    if kinds <= {int, float}:
        try:
            wide = np.array(values, np.float64)
        except OverflowError:
            wide = np.array([np.inf])
        if not np.isfinite(wide).all():
            raise LatticeError(f"{name} hold a number too large", pointer=f"/{name}")
        single = single_of(wide)
        return single if (single == wide).all() else wide
    at = next(at for at, value in enumerate(values) if type(value) not in (int, float))
    raise LatticeError(f"{name} hold {values[at]!r:.40}; need numbers", pointer=f"/{name}")


def _arcs_text(tensors: K2Tensors) -> str:
    if tensors.is_vector:
        return _text(tensors.arcs().tolist())
    src, dst, labels = tensors.ends.T.tolist()
    scores = _number_texts(tensors.scores)
    rows = zip(src, dst, labels, scores, strict=True)
    return "[" + ",\n".join([f"[{a}, {b}, {c}, {score}]" for a, b, c, score in rows]) + "]"


def _number_texts(values: NDArray[np.floating]) -> list[str]:
    return (
        texts_of(values, 'inf"')
        if not np.isinf(values).any()
        else [f'"{text}"' if text == _INFINITY else text for text in texts_of(values)]
    )


def _numbers_text(column: Column | Ragged) -> str:
    assert not isinstance(column, Ragged)
    return "[" + ", ".join(_number_texts(column.astype(np.float32))) + "]"


def _column_text(column: Column | Ragged) -> str:
    if not isinstance(column, Ragged):
        return _text(column.tolist())
    values, splits = column.values.tolist(), column.splits.tolist()
    return _text([values[begin:end] for begin, end in pairwise(splits)])


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
