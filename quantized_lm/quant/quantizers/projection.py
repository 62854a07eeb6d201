"""The point of a grid nearest to a matrix, with scales tied across rows as one likes.

It is the G step of ADMM and the start of every learned scale. Pure maths on one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.levels import (
    GridPoint,
    Levels,
    quantize_blocks,
    require_matrix,
)
from quantized_lm.quant.quantizers.scales import LARGEST_SCALE, stored_scale
from quantized_lm.quant.quantizers.ties import Ties
from quantized_lm.quant.tensor import QuantizedTensor

_TURNS = 8  # of the alternation; later ones seldom change a code
# A code changes at certain scales. Up to so many of them, all are tried, which is exact.
_MOST_CHANGES = 1 << 22
_CHUNK_CHANGES = 1 << 20
# What is tried otherwise, as multiples of rms(weight) / rms(levels): the best for a Gaussian is
# 0.8 for 1 bit, 1 for ternary, 1.1 for 2 bits, 1.5 for 4 bits and 2.3 for 8 bits.
_CANDIDATES = np.geomspace(0.5, 4.0, 13).tolist()


def project(weight: Tensor, grid: Grid, tie: str = "row") -> GridPoint:
    """Minimize ||weight - scale * levels[codes]||^2 over codes and scales >= 0.

    Exact, up to the rounding of scales to float16, for matrices whose codes change at no more than
    4 M scales; larger ones may end in a local minimum, reached from the best of 14 scales.

    Args:
        weight: (N, K) float32, finite.
        grid: format and levels; group_size must be None.
        tie: which rows share a scale, see ties.py.

    Raises:
        FormatError: the weight is no finite float32 matrix or too large, or grid or tie do not fit.
    """
    weight = weight.detach()
    require_matrix(weight)
    return project_tied(weight, Levels(grid).to(weight.device), Ties(weight, tie))


def project_tied(
    weight: Tensor, levels: Levels, ties: Ties, *, start: Tensor | None = None
) -> GridPoint:
    """`project` for groups of rows that are known already.

    Alternates between codes = nearest(weight / scale) and scale = <weight, q> / <q, q> with
    q = levels[codes], as Leng et al. (AAAI 2018) do, and keeps the best as float16 stores it.

    Args:
        weight: (N, K) float32, finite.
        levels: with thresholds at the midpoints.
        start: (G, 1) scales to begin with, at least 0; the best ones by default.

    Raises:
        FormatError: a weight needs a scale that float16 does not hold.
    """
    weight = weight.detach()
    require_storable(weight, levels)
    scale = _best_start(weight, levels, ties) if start is None else start.flatten()
    best = _round(weight, levels, ties, scale)
    for _ in range(_TURNS):
        other = _round(weight, levels, ties, best.closed_form)
        is_better = other.error < best.error
        if not is_better.any():
            break
        best = best.replaced(other, is_better)
    ratio = weight / ties.spread(best.scale[:, None])
    return GridPoint(levels.codes(ratio), best.scale[:, None])


def quantize_by_projection(weight: NDArray[np.float32], grid: Grid) -> QuantizedTensor:
    """The nearest point of the grid; a scale for each row, or each group of its columns.

    Raises:
        FormatError: as `round_to_nearest`.
    """
    return quantize_blocks(weight, grid, project)


def require_storable(weight: Tensor, levels: Levels) -> None:
    """Refuse weights that no float16 scale lets the levels reach.

    Raises:
        FormatError: there is one.
    """
    largest = float(weight.detach().abs().max())
    covering = largest / levels.reach
    if covering > LARGEST_SCALE:
        raise FormatError(
            f"weight {largest:g} needs a scale of {covering:g}; float16 holds up to "
            f"{LARGEST_SCALE:g}"
        )


@dataclass(frozen=True, eq=False)
class _Rounding:
    """What rounding with one scale per group comes to.

    Attributes:
        scale: (G,) float32, as stored. error: (G,) float64, squared.
        closed_form: (G,) float32, the best scale for the codes that `scale` leads to.
    """

    scale: Tensor
    error: Tensor
    closed_form: Tensor

    def replaced(self, other: _Rounding, where: Tensor) -> _Rounding:
        """With the groups of the other one where `where` (G,) is true."""
        return _Rounding(
            torch.where(where, other.scale, self.scale),
            torch.where(where, other.error, self.error),
            torch.where(where, other.closed_form, self.closed_form),
        )


def _round(weight: Tensor, levels: Levels, ties: Ties, scale: Tensor) -> _Rounding:
    """Round with `scale` (G,) as float16 stores it."""
    stored = stored_scale(scale)
    rounded = levels.nearest(weight / ties.spread(stored[:, None]))
    error = ties.total((weight - ties.spread(stored[:, None]) * rounded).square().sum(1))
    inner = ties.total((weight * rounded).sum(1))
    norm = ties.total(rounded.square().sum(1))
    return _Rounding(stored, error, (inner / norm.clamp_min(1)).clamp_min(0).float())


def _best_start(weight: Tensor, levels: Levels, ties: Ties) -> Tensor:
    """(G,) float32 scales to begin with."""
    sides = torch.stack([_changes(levels, sign=1), _changes(levels, sign=-1)])
    sides = sides[:, :, : max(1, int(sides[:, 0].isfinite().sum(1).max()))]
    if weight.numel() * sides.shape[-1] <= _MOST_CHANGES:
        return torch.cat([_exact_scales(block, levels, sides) for block in ties.blocks(weight)])
    best = _round(weight, levels, ties, ties.largest(weight.abs().amax(1)) / levels.reach)
    rows = ties.total(torch.ones_like(weight[:, 0])).clamp_min(1)
    size = (ties.total(weight.square().mean(1)) / rows).sqrt().float()
    unit = size / levels.values.square().mean().sqrt()
    for candidate in _CANDIDATES:
        other = _round(weight, levels, ties, unit * candidate)
        best = best.replaced(other, other.error < best.error)
    return best.scale


def _exact_scales(block: Tensor, levels: Levels, sides: Tensor) -> Tensor:
    """The scale of each row that lets the levels come nearest: (R, S) -> (R,) float32.

    From infinity down, the scale passes |weight| / |threshold|, where a code moves away from zero
    and <w, q> and <q, q> change by known amounts. The squared error for the best scale of fixed
    codes is <w, w> - <w, q>^2 / <q, q>, so the largest quotient along the way is the optimum.

    Args:
        sides: (2, 3, T) what `_changes` says of positive and of negative weights.
    """
    chunk = max(1, _CHUNK_CHANGES // max(1, block.shape[1] * sides.shape[-1]))
    return torch.cat([_sweep(rows, levels, sides) for rows in torch.split(block, chunk)])


def _sweep(rows: Tensor, levels: Levels, sides: Tensor) -> Tensor:
    """`_exact_scales` of a few rows."""
    threshold, rise, growth = sides[(rows <= 0).long()].unbind(-2)  # each (R, S, T)
    size = rows.abs()[:, :, None]
    order = (size / threshold).flatten(1).argsort(dim=1, descending=True, stable=True)
    values = levels.values.double()
    zero = (levels.thresholds < 0).sum(), (levels.thresholds <= 0).sum()
    first = torch.where(rows > 0, values[zero[1]], values[zero[0]])
    inner = _running((rows * first).sum(1), (size * rise).flatten(1).gather(1, order))
    norm = _running(first.square().sum(1), growth.flatten(1).gather(1, order))
    quotient = inner.clamp_min(0).square() / norm.clamp_min(1)
    best = quotient.argmax(1, keepdim=True)
    scale = inner.gather(1, best).clamp_min(0) / norm.gather(1, best).clamp_min(1)
    return scale.flatten().float()


def _changes(levels: Levels, *, sign: int) -> Tensor:
    """How codes of weights of one sign move away from zero, padded to the number of levels.

    Returns:
        (3, L) float32: size of the threshold (infinite in the padding); by how much the level
        rises; by how much its square grows.
    """
    changes = torch.zeros(3, len(levels), device=levels.values.device)
    changes[0] = torch.inf
    beyond = levels.thresholds * sign > 0
    upper, lower = levels.values[1:][beyond], levels.values[:-1][beyond]
    count = int(beyond.sum())
    changes[0, :count] = levels.thresholds[beyond].abs()
    changes[1, :count] = upper - lower
    changes[2, :count] = (upper.square() - lower.square()) * sign
    return changes


def _running(start: Tensor, steps: Tensor) -> Tensor:
    """(R,) and (R, T) -> (R, T + 1) float64: sums of the start and the first steps."""
    return torch.cat([start.double()[:, None], steps.double()], dim=1).cumsum(1)
