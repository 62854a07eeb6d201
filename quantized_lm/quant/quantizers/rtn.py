"""Round to nearest, with the scale of every group chosen to minimize its squared error.

Pure maths on one matrix: no data, no model. It is the starting point of every better quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.levels import level_table
from quantized_lm.quant.tensor import QuantizedTensor

# Candidates, as multiples of rms(weight) / rms(levels). The best multiple for a Gaussian is 0.8
# for 1 bit, 1 for ternary, 1.1 for 2 bits, 1.5 for 4 bits and 2.3 for 8 bits.
_CANDIDATES = np.geomspace(0.5, 4.0, 13)
_REFINEMENTS = 8
_SMALLEST_SCALE = float(np.finfo(np.float16).smallest_subnormal)
_LARGEST_SCALE = float(np.finfo(np.float16).max)
# Half-unit cells on either side of zero that int8 levels span.
_CELLS = 256
# Rows are independent; a chunk of them bounds the memory taken by temporaries.
_CHUNK_ELEMENTS = 1 << 17


@dataclass(frozen=True, eq=False)
class _Choice:
    """Best scale so far for each of R groups.

    Attributes:
        scale: (R,) float32, each exactly representable in float16.
        error: (R,) float32 squared error.
    """

    scale: NDArray[np.float32]
    error: NDArray[np.float32]

    def better_of(self, other: _Choice) -> _Choice:
        """Choose group by group; the earlier one wins ties, so the result is deterministic."""
        is_better = other.error < self.error
        return _Choice(
            np.where(is_better, other.scale, self.scale),
            np.where(is_better, other.error, self.error),
        )


def round_to_nearest(weight: NDArray[np.float32], grid: Grid) -> QuantizedTensor:
    """Quantize: for each group minimize sum over k of (weight[k] - scale * levels[code[k]])^2.

    The scale starts at the best of a fixed set of candidates, then alternates between its closed
    form <w, q> / <q, q> and rounding. Errors are measured with the scale as stored, in float16.

    Args:
        weight: (N, K) float32, finite.
        grid: format, levels and group size.

    Raises:
        FormatError: weight is not a finite float32 matrix, too large for a float16 scale, or
            does not fit the grid.
    """
    if weight.ndim != 2 or weight.dtype != np.float32 or weight.size == 0:
        raise FormatError(f"weight is {weight.dtype} {weight.shape}; need a float32 matrix")
    if not np.isfinite(weight).all():
        raise FormatError("weight holds NaN or infinity; need finite numbers")
    levels = level_table(grid)
    num_rows, num_columns = weight.shape
    group_size = num_columns if grid.group_size is None else grid.group_size
    if not 1 <= group_size <= num_columns:
        raise FormatError(f"group_size is {group_size}; need 1 to {num_columns}")
    starts = range(0, num_columns, group_size)
    codes = np.empty(weight.shape, np.uint8)
    scale = np.empty((num_rows, len(starts)), np.float16)
    chunk = max(1, _CHUNK_ELEMENTS // group_size)
    for group, start in enumerate(starts):
        columns = slice(start, start + group_size)
        for row in range(0, num_rows, chunk):
            rows = slice(row, row + chunk)
            codes[rows, columns], scale[rows, group] = _quantize_groups(
                weight[rows, columns], levels
            )
    return QuantizedTensor.from_codes(
        codes, scale, levels, format=grid.format, group_size=group_size
    )


def _quantize_groups(
    groups: NDArray[np.float32], levels: NDArray[np.int8]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Quantize R groups of S weights, (R, S) float32: (R, S) codes and (R,) scales."""
    table = levels.astype(np.float32)
    largest = np.abs(groups).max(axis=1)
    covering = largest / np.abs(table).max()
    if covering.max() > _LARGEST_SCALE:
        raise FormatError(
            f"weight {largest.max():g} needs a scale of {covering.max():g}; float16 holds up to "
            f"{_LARGEST_SCALE:g}"
        )
    rms_ratio = np.sqrt(np.square(groups).mean(axis=1) / np.square(table).mean())
    best = _evaluate(groups, table, covering)[0]
    for candidate in _CANDIDATES:
        best = best.better_of(_evaluate(groups, table, rms_ratio * np.float32(candidate))[0])
    for _ in range(_REFINEMENTS):
        _, rounded = _evaluate(groups, table, best.scale)
        norm = np.square(rounded).sum(axis=1)
        inner = (groups * rounded).sum(axis=1)
        closed_form = np.divide(inner, norm, out=np.zeros_like(norm), where=norm > 0)
        best = best.better_of(_evaluate(groups, table, closed_form)[0])
    return _nearest(groups, table, best.scale), best.scale.astype(np.float16)


def _evaluate(
    groups: NDArray[np.float32], table: NDArray[np.float32], scale: NDArray[np.float32]
) -> tuple[_Choice, NDArray[np.float32]]:
    """Round with `scale` as float16 stores it: the error of each group, and (R, S) levels."""
    stored = np.clip(scale, _SMALLEST_SCALE, _LARGEST_SCALE).astype(np.float16).astype(np.float32)
    rounded = table[_nearest(groups, table, stored)]
    error = np.square(groups - stored[:, None] * rounded).sum(axis=1)
    return _Choice(stored, error), rounded


def _nearest(
    groups: NDArray[np.float32], table: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Code of the level nearest to weight / scale.

    Levels are int8, so thresholds between them are multiples of 1/2: the half-unit cell that
    weight / scale falls into decides the code, and a table over all cells replaces a search.
    """
    cells = np.arange(-_CELLS, _CELLS)
    order = np.argsort(table, kind="stable")
    ascending = table[order]
    midpoints = (ascending[:-1] + ascending[1:]) / 2
    code_of_cell = order[np.searchsorted(midpoints, cells / 2 + 0.25)].astype(np.uint8)
    cell = np.floor(groups * (2 / scale)[:, None])
    np.clip(cell, -_CELLS, _CELLS - 1, out=cell)
    cell += _CELLS
    return code_of_cell[cell.astype(np.int16)]
