"""Rows and columns of a matrix of codes grouped by how their codes are distributed.

Embeddings have dimensions of very different variance under one scale per row, and frequent words'
rows differ from rare words'. A table of frequencies for each pair of a row and a column cluster
follows both. Knows nothing of how tables are coded but roughly what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CLUSTERS = 8  # of rows, and of columns
# Where there are more levels a table costs more than it gains.
_MAX_LEVELS = 16
_ROUNDS = 4
_BLOCK_ROWS = 512
_FREQUENCY_BITS = 16
_LABELS_BITS = 200  # of a Huffman table of labels, if there are labels
_SMOOTHING = 0.5  # of a code, so that one which a cluster lacks does not repel a row that has it


@dataclass(frozen=True, eq=False)
class Clusters:
    """A label for every row and every column.

    Attributes:
        rows, columns: (N,) and (K,) uint8, each label below the number of clusters.
        num_rows, num_columns: clusters, 1 to MAX_CLUSTERS.
    """

    rows: NDArray[np.uint8]
    columns: NDArray[np.uint8]
    num_rows: int
    num_columns: int

    @classmethod
    def single(cls, shape: tuple[int, int]) -> Clusters:
        """All in one."""
        return cls(np.zeros(shape[0], np.uint8), np.zeros(shape[1], np.uint8), 1, 1)


def find_clusters(codes: NDArray[np.uint8], num_levels: int) -> Clusters:
    """Group rows and columns so that codes and everything said about the groups are few bits.

    Lloyd's iteration on both sides in turn, from MAX_CLUSTERS groups by the share of the most
    frequent code; then groups are merged while that saves bits.

    Args:
        codes: (N, K) uint8, each below num_levels.
    """
    shape = (codes.shape[0], codes.shape[1])
    if num_levels > _MAX_LEVELS:
        return Clusters.single(shape)
    top = np.bincount(codes.reshape(-1), minlength=num_levels).argmax()
    is_top = codes == top
    rows, columns = _quantiles(is_top.sum(1)), _quantiles(is_top.sum(0))
    for _ in range(_ROUNDS):
        rows = _nearest(_counts(codes, num_levels, columns), rows)
        of_columns = _counts(codes.T, num_levels, rows)
        columns = _nearest(of_columns, columns)
    tables = _tables(of_columns, columns).swapaxes(0, 1)
    return _merge(_Grouping(tables, rows, columns))


def _quantiles(share: NDArray[np.int64]) -> NDArray[np.int64]:
    """MAX_CLUSTERS labels, equally many of each, by rank."""
    labels = np.empty(len(share), np.int64)
    labels[np.argsort(share, kind="stable")] = np.arange(len(share)) * MAX_CLUSTERS // len(share)
    return labels


def _counts(
    codes: NDArray[np.uint8], num_levels: int, labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """How often each code stands in each row's columns of each label: (N, MAX_CLUSTERS, L)."""
    width = MAX_CLUSTERS * num_levels
    counts = np.empty((len(codes), width))
    for start in range(0, len(codes), _BLOCK_ROWS):
        block = codes[start : start + _BLOCK_ROWS]
        cell = np.arange(len(block))[:, None] * width + labels * num_levels + block
        counts[start : start + len(block)] = np.bincount(
            cell.reshape(-1), minlength=len(block) * width
        ).reshape(-1, width)
    return counts.reshape(len(codes), MAX_CLUSTERS, num_levels)


def _tables(counts: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of counts (N, C, L) by label: (MAX_CLUSTERS, C, L)."""
    return np.stack([counts[labels == label].sum(0) for label in range(MAX_CLUSTERS)])


def _nearest(counts: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The label whose tables code each row in the fewest bits."""
    tables = _tables(counts, labels) + _SMOOTHING
    information = -np.log2(tables / tables.sum(-1, keepdims=True))
    bits = counts.reshape(len(counts), -1) @ information.reshape(MAX_CLUSTERS, -1).T
    return np.asarray(bits.argmin(1), np.int64)


class _Grouping:
    """Tables and labels while groups are being merged; empty groups are dropped at once.

    Attributes:
        tables: (R, C, L) how often each code occurs.
        rows, columns: (N,) and (K,) labels below R and C.
    """

    def __init__(
        self,
        tables: NDArray[np.float64],
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
    ) -> None:
        used_rows, self.rows = np.unique(rows, return_inverse=True)
        used_columns, self.columns = np.unique(columns, return_inverse=True)
        self.tables = tables[used_rows][:, used_columns]

    @property
    def bits(self) -> float:
        """Codes, tables and labels."""
        num_rows, num_columns, num_levels = self.tables.shape
        return float(
            _information(self.tables).sum()
            + num_rows * num_columns * (num_levels - 1) * _FREQUENCY_BITS
            + _label_bits(self.rows)
            + _label_bits(self.columns)
        )

    def best_merge(self) -> _Grouping | None:
        """The two groups of rows, or of columns, that lose least as one; None if there is one."""
        num_rows, num_columns, _ = self.tables.shape
        by_rows = _cheapest_pair(self.tables)
        by_columns = _cheapest_pair(self.tables.swapaxes(0, 1))
        options = []
        if by_rows is not None:
            names = _renamed(num_rows, by_rows)
            tables = _sum_by(self.tables, names)
            options.append(_Grouping(tables, names[self.rows], self.columns))
        if by_columns is not None:
            names = _renamed(num_columns, by_columns)
            tables = _sum_by(self.tables.swapaxes(0, 1), names).swapaxes(0, 1)
            options.append(_Grouping(tables, self.rows, names[self.columns]))
        return min(options, key=lambda option: option.bits, default=None)


def _merge(grouping: _Grouping) -> Clusters:
    """Merge down to one group, and take the best of all that was passed."""
    best, best_bits = grouping, grouping.bits
    step = grouping.best_merge()
    while step is not None:
        if step.bits <= best_bits:
            best, best_bits = step, step.bits
        step = step.best_merge()
    num_rows, num_columns, _ = best.tables.shape
    return Clusters(
        best.rows.astype(np.uint8), best.columns.astype(np.uint8), num_rows, num_columns
    )


def _cheapest_pair(tables: NDArray[np.float64]) -> tuple[int, int] | None:
    """The two first indices whose tables (R, C, L) need the fewest more bits when summed."""
    first, second = np.triu_indices(len(tables), 1)
    if not first.size:
        return None
    alone = _information(tables).sum(-1)
    together = _information(tables[first] + tables[second]).sum(-1)
    pair = int((together - alone[first] - alone[second]).argmin())
    return int(first[pair]), int(second[pair])


def _renamed(count: int, pair: tuple[int, int]) -> NDArray[np.int64]:
    """New labels of `count` groups after the second of a pair joins the first."""
    names = np.arange(count)
    names[pair[1]] = pair[0]
    return names


def _sum_by(tables: NDArray[np.float64], names: NDArray[np.int64]) -> NDArray[np.float64]:
    summed = np.zeros_like(tables)
    np.add.at(summed, names, tables)
    return summed


def _information(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits of an ideal code for counts (..., L): (...)."""
    total = counts.sum(-1, keepdims=True)
    share = np.divide(counts, total, out=np.ones_like(counts), where=counts > 0)
    return np.asarray(-(counts * np.log2(share)).sum(-1), np.float64)


def _label_bits(labels: NDArray[np.int64]) -> float:
    counts = np.bincount(labels).astype(np.float64)
    return 0.0 if len(counts) == 1 else float(_information(counts)) + _LABELS_BITS
