"""Rows of columns: taken, repeated and left empty. Knows no automaton."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantized_lm.lattice.lattice import Column, Ragged

Rows = NDArray[np.int64]


def ragged(lengths: NDArray[np.int64] | Sequence[int], values: Column) -> Ragged:
    """Lists of the given lengths out of their values in a row."""
    splits = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=splits[1:])
    return Ragged(splits, values)


def at_most_one(words: NDArray[np.int64]) -> Ragged:
    """The word of each arc, (E,), as lists: none where it is 0 or -1."""
    has = words > 0
    return ragged(has.astype(np.int64), words[has].astype(np.int32))


def lengths_of(lists: Ragged) -> NDArray[np.int64]:
    """(E,) how many values each list has."""
    return np.diff(lists.splits).astype(np.int64)


def first_or_zero(lists: Ragged) -> NDArray[np.int64]:
    """(E,) the first value of each list, 0 where it is empty."""
    first = np.zeros(len(lists.splits) - 1, np.int64)
    full = np.diff(lists.splits) > 0
    first[full] = lists.values[lists.splits[:-1][full]]
    return first


def take(column: Column | Ragged, rows: Rows) -> Column | Ragged:
    """Rows of a column by index; -1 is a row of zero, "" or no values."""
    if isinstance(column, Ragged):
        return take_lists(column, rows)
    return take_rows(column, rows)


def take_rows(column: Column, rows: Rows) -> Column:
    """The same of an array."""
    empty: Column = np.zeros((1, *column.shape[1:]), column.dtype)
    padded: Column = np.concatenate([column, empty])  # so that -1 is the empty row
    return padded[rows]


def take_lists(lists: Ragged, rows: Rows) -> Ragged:
    """The same of lists."""
    lengths = np.append(lengths_of(lists), 0)[rows]
    result = ragged(lengths, lists.values[:0])
    begin = np.append(lists.splits[:-1].astype(np.int64), 0)[rows]
    index = np.repeat(begin - result.splits[:-1], lengths) + np.arange(result.splits[-1])
    return Ragged(result.splits, lists.values[index])


def join(columns: Sequence[Column | Ragged]) -> Column | Ragged:
    """Columns of one kind, one below the other."""
    lists = [column for column in columns if isinstance(column, Ragged)]
    if not lists:
        return np.concatenate([column for column in columns if not isinstance(column, Ragged)])
    lengths = np.concatenate([lengths_of(one) for one in lists])
    return ragged(lengths, np.concatenate([one.values for one in lists]))
