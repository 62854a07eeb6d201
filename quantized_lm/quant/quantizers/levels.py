"""Rounding a matrix to a table of levels, fast enough for every training step.

Knows no scales: what it rounds is weight / scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import Grid, get_format
from quantized_lm.quant.tensor import QuantizedTensor

# Compiled, comparisons fuse into the pass around them and a binary search does not: 1 ms against
# 20 to 40 for 2.5 M weights (one core). Not compiled, the search wins.
_MOST_COMPARED = 16


@dataclass(frozen=True, eq=False)
class GridPoint:
    """A matrix on a grid: scale of the row's group times Levels.values[codes].

    Attributes:
        codes: (N, K) uint8, indices into the ascending levels.
        scale: (G, 1) float32 that float16 holds exactly, one for each group of rows.
    """

    codes: Tensor
    scale: Tensor


def level_table(grid: Grid) -> NDArray[np.int8]:
    """The grid's levels in its own order, (L,).

    Raises:
        FormatError: too many levels, one that is no int8, or none but zero.
    """
    limits = np.iinfo(np.int8)
    num_levels = get_format(grid.format).num_levels
    if not 1 <= len(grid.levels) <= num_levels:
        raise FormatError(f"{len(grid.levels)} levels; {grid.format} needs 1 to {num_levels}")
    if min(grid.levels) < limits.min or max(grid.levels) > limits.max:
        raise FormatError(f"levels are {grid.levels}; need {limits.min} to {limits.max}")
    if not any(grid.levels):
        raise FormatError("every level is zero; need one that is not")
    return np.array(grid.levels, np.int8)


def require_matrix(weight: Tensor) -> None:
    """Refuse what cannot be quantized.

    Raises:
        FormatError: it is not a float32 matrix, or holds NaN or infinity.
    """
    if weight.ndim != 2 or weight.dtype != torch.float32 or not weight.numel():
        kind = f"{weight.dtype} {tuple(weight.shape)}".removeprefix("torch.")
        raise FormatError(f"weight is {kind}; need a float32 matrix")
    if not weight.isfinite().all():
        raise FormatError("weight holds NaN or infinity; need finite numbers")


class Levels(nn.Module):
    """A table of levels in ascending order, and the thresholds between them.

    Args:
        grid: format and levels.
        moves: whether the thresholds are state of the quantizer, to be set by `move`, rather than
            the midpoints.

    Attributes:
        values: (L,) float32, ascending. thresholds: (L - 1,) float32, ascending.
        lowest, highest: levels. reach: size of the largest one.
        half_step: half the distance between the two highest levels.

    Raises:
        FormatError: the levels do not fit the format, or scales would be per group.
    """

    values: Tensor
    thresholds: Tensor

    def __init__(self, grid: Grid, *, moves: bool = False) -> None:
        super().__init__()
        if grid.group_size is not None:
            raise FormatError(f"group_size is {grid.group_size}; need None: one scale per row")
        values = torch.from_numpy(np.sort(level_table(grid)).astype(np.float32))
        self.format = grid.format
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("thresholds", (values[:-1] + values[1:]) / 2, persistent=moves)
        self.lowest, self.highest = float(values[0]), float(values[-1])
        self.reach = max(-self.lowest, self.highest)
        gaps = values.diff()
        self.gap = float(gaps[0]) if len(gaps) else 0.0
        self.half_step = float(gaps[-1]) / 2 if len(gaps) else 0.0
        self.is_even = len(gaps) > 0 and bool((gaps == self.gap).all())
        self.moves = moves

    def __len__(self) -> int:
        return len(self.values)

    def nearest(self, ratio: Tensor) -> Tensor:
        """(...) float32 -> (...) float32, the level between whose thresholds each ratio lies."""
        if self.is_even and not self.moves:
            position = ((ratio - self.lowest) / self.gap).round().clamp(0, len(self) - 1)
            return position * self.gap + self.lowest
        if len(self) > _MOST_COMPARED or not torch.compiler.is_compiling():
            return self.values[torch.bucketize(ratio, self.thresholds)]
        level = self.values[0].expand_as(ratio)
        steps = self.values.diff()
        for index in range(len(self) - 1):
            level = level + torch.where(ratio > self.thresholds[index], steps[index], 0.0)
        return level

    def straight_through(self, ratio: Tensor) -> Tensor:
        """`nearest`, with the gradient of the identity inside the range of the levels."""
        inside = ratio.clamp(self.lowest, self.highest)
        # The difference is exactly zero: it only carries the gradient, values stay levels.
        return self.nearest(ratio.detach()) + (inside - inside.detach())

    def codes(self, ratio: Tensor) -> Tensor:
        """(...) float32 -> uint8 indices into `values`, of the levels that `nearest` gives."""
        return torch.bucketize(self.nearest(ratio), self.values).to(torch.uint8)

    def cells(self, ratio: Tensor) -> Tensor:
        """(...) float32 -> (...) int32 numbers of the gaps between levels that ratios lie in.

        Gap c is the one from values[c] to values[c + 1]; the outer ones reach on for ever.
        """
        if self.is_even:
            cell = ((ratio - self.lowest) / self.gap).floor().clamp(0, len(self) - 2)
            return cell.to(torch.int32)
        return torch.bucketize(ratio, self.values[1:-1], out_int32=True)

    def move(self, thresholds: Tensor) -> None:
        """Replace the thresholds: (L - 1,) float32, ascending."""
        self.thresholds.copy_(thresholds)

    def pack(self, codes: Tensor, scale: Tensor) -> QuantizedTensor:
        """The tensor of codes (N, K) uint8 and scales (N, 1) or (1, 1) that float16 holds."""
        rows = scale.detach().expand(len(codes), 1)
        return QuantizedTensor.from_codes(
            codes.cpu().numpy(),
            rows.cpu().numpy().astype(np.float16),
            self.values.cpu().numpy().astype(np.int8),
            format=self.format,
        )


def quantize_blocks(
    weight: NDArray[np.float32], grid: Grid, method: Callable[[Tensor, Grid], GridPoint]
) -> QuantizedTensor:
    """Quantize each group of columns with scales of its own.

    Args:
        weight: (N, K) float32, finite.
        grid: format, levels and group size.
        method: gives a block of columns (N, S) codes and N scales, by a grid without groups.

    Raises:
        FormatError: the weight is no finite float32 matrix, or does not fit the grid.
    """
    matrix = torch.from_numpy(np.require(weight, requirements="W"))
    require_matrix(matrix)
    num_columns = matrix.shape[1]
    group_size = num_columns if grid.group_size is None else grid.group_size
    if not 1 <= group_size <= num_columns:
        raise FormatError(f"group_size is {group_size}; need 1 to {num_columns}")
    whole = Grid(grid.format, grid.levels)
    points = [method(block, whole) for block in torch.split(matrix, group_size, dim=1)]
    return QuantizedTensor.from_codes(
        torch.cat([point.codes for point in points], dim=1).numpy(),
        torch.cat([point.scale for point in points], dim=1).numpy().astype(np.float16),
        np.sort(level_table(grid)),
        format=grid.format,
        group_size=group_size,
    )
