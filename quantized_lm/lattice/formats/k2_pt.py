"""`torch.save(fsa.as_dict(), ...)`, read and written without k2 and torch.

A pickle may hold tensors, plain values, and k2's RaggedTensor and SymbolTable, for which classes
here stand that only keep what they are given. Words are those of `aux_labels_sym`, or of
`labels_sym` where words are on labels, unless a table is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import ReadOptions, require_some
from quantized_lm.lattice.formats.k2_json import parse_ids, parse_symbols
from quantized_lm.lattice.formats.k2_lattices import dropped, tensors_of
from quantized_lm.lattice.formats.k2_tensors import (
    Whole,
    lattices_of,
    lists_of,
    tensors_of_arcs,
)
from quantized_lm.lattice.formats.torch_zip import Tensor, read_record, write_record
from quantized_lm.lattice.lattice import Column, Lattice, Ragged

_KINDS = "iufb"
_OWN = ("aux_labels", "lm_scores")  # what else is no tensor is k2's user's own
_RAGGED = ("_k2.ragged", "RaggedTensor")
_SYMBOLS = ("k2.symbol_table", "SymbolTable")
_WORDS = "_id2sym"  # where a SymbolTable has them
_ONE_AXIS = "row_ids1"  # k2's name of what it did not store; it computes it from the splits


class _Kept:
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state


class RaggedState(_Kept):
    """Stands for k2's RaggedTensor of two axes: (row splits, "row_ids1", values)."""


class SymbolsState(_Kept):
    """Stands for k2's SymbolTable."""


def read(data: bytes, options: ReadOptions) -> list[Lattice]:
    """One lattice, or those of an FsaVec.

    Raises:
        LatticeError: it is no such file, holds anything but tensors, or no valid k2 lattice.
    """
    record = read_record(data, {_RAGGED: RaggedState, _SYMBOLS: SymbolsState})
    if not isinstance(record, dict) or not all(isinstance(name, str) for name in record):
        raise LatticeError("the file holds no mapping of names; save fsa.as_dict()")
    columns: dict[str, Column | Ragged] = {}
    for name, value in record.items():
        if isinstance(value, RaggedState):
            columns[name] = _lists(name, value)
        elif isinstance(value, Tensor):
            columns[name] = _array(name, value)
        elif name in _OWN and value is not None:
            raise LatticeError(
                f"{name} is a {type(value).__name__}; need a tensor or a RaggedTensor",
                pointer=f"/{name}",
            )
    arcs = columns.pop("arcs", None)
    if arcs is None or isinstance(arcs, Ragged):
        raise LatticeError("there is no tensor of arcs", pointer="/arcs")
    texts = {name: value for name, value in record.items() if name in ("id", "ids")}
    is_on_labels = "aux_labels" not in columns or options.words_on == "labels"
    own = None
    if options.symbols is None:
        name = "labels_sym" if is_on_labels else "aux_labels_sym"
        own = _symbols(name, record.get(name))
    return lattices_of(
        tensors_of_arcs(arcs, columns, options), Whole(options, own, parse_ids(texts))
    )


def write(lattices: Sequence[Lattice]) -> bytes:
    """What `k2.Fsa.from_dict(torch.load(...))` takes.

    Raises:
        LatticeError: a score is too large for float32.
    """
    require_some(lattices, at_most_one=False, name="k2-pt")
    tensors = tensors_of(lattices, kinds=_KINDS)
    record: dict[str, object] = {"arcs": tensors.arcs()}
    for name, column in tensors.columns.items():
        if isinstance(column, Ragged):
            ragged = RaggedState()
            ragged.state = (column.splits, _ONE_AXIS, column.values)
            record[name] = ragged
        else:
            record[name] = column
    ids = [lattice.utterance for lattice in lattices]
    if any(ids):
        record["id" if len(ids) == 1 else "ids"] = ids[0] if len(ids) == 1 else ids
    return write_record(record, {RaggedState: _RAGGED})


def drops(lattices: Sequence[Lattice]) -> list[str]:
    """Symbols, texts, states' attributes and headers."""
    return dropped(lattices, _KINDS, holds_symbols=False)


def _symbols(name: str, table: object) -> dict[int, str] | None:
    """Words by id; None where the attribute is no table of k2's."""
    if not isinstance(table, SymbolsState):
        return None
    words = table.state.get(_WORDS) if isinstance(table.state, dict) else None
    if not isinstance(words, dict):
        raise LatticeError(f"{name} is no SymbolTable with words", pointer=f"/{name}")
    return parse_symbols({str(symbol): word for symbol, word in words.items()})


def _array(name: str, tensor: Tensor) -> Column:
    """One number or list of numbers for each arc."""
    if tensor.array.ndim == 0:
        raise LatticeError(f"{name} is one number; need one row per arc", pointer=f"/{name}")
    return np.ascontiguousarray(tensor.array)


def _lists(name: str, ragged: RaggedState) -> Ragged:
    state = ragged.state
    if (
        not isinstance(state, tuple)
        or len(state) != 3
        or state[1] != _ONE_AXIS
        or not (isinstance(state[0], Tensor) and isinstance(state[2], Tensor))
    ):
        raise LatticeError(f"{name} is no RaggedTensor of two axes", pointer=f"/{name}")
    return lists_of(name, _array(name, state[0]), _array(name, state[2]))
