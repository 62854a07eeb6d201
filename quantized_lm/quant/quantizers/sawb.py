"""SAWB: a clip read off the weight's own statistics, with nothing learned.

Statistics-aware weight binning (Choi et al., "Accurate and efficient 2-bit quantized neural
networks", MLSys 2019; used for speech by Fasoli et al., Interspeech 2021, arXiv 2108.12074): the
clip is c0 * sqrt(E[w^2]) + c1 * E|w|, with coefficients fitted once per number of levels to the
least-squares clip of several distributions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers.levels import (
    GridPoint,
    Levels,
    quantize_blocks,
    require_matrix,
)
from quantized_lm.quant.quantizers.projection import require_storable
from quantized_lm.quant.quantizers.scales import stored_scale
from quantized_lm.quant.quantizers.ties import Ties
from quantized_lm.quant.quantizers.trained import TrainedQuantizer
from quantized_lm.quant.tensor import QuantizedTensor

_EIGHT_BITS = (31.76, -35.04)
# c0 and c1 by format and table. Those of sign, ternary, threelevel, balanced, uniform and symmetric
# levels are in IBM's fms-model-optimizer (the mean is the least-squares scale of 1 bit). The others
# were fitted like them, to Gaussian, uniform, Laplace, logistic, triangular and von Mises samples;
# the same fit gives (3.11, -2.05) for balanced levels and (2.56, -1.64) for ternary ones.
_COEFFICIENTS = {
    ("1bit", "sign"): (0.0, 1.0),
    ("ternary", "ternary"): (2.6, -1.71),
    ("2bit", "balanced"): (3.12, -2.064),
    ("4bit", "uniform"): (12.68, -12.80),
    ("4bit", "symmetric"): (12.035, -12.03),
    ("4bit", "normal"): (14.60, -15.12),
    ("4bit", "powers"): (25.58, -27.11),
    ("4bit", "quinary"): (5.05, -4.23),
    ("4bit", "septenary"): (6.88, -6.22),
    ("8bit", "uniform"): _EIGHT_BITS,
    ("8bit", "symmetric"): _EIGHT_BITS,
}
COEFFICIENTS: Mapping[tuple[int, ...], tuple[float, float]] = MappingProxyType(
    {FORMATS[name].level_tables[table]: pair for (name, table), pair in _COEFFICIENTS.items()}
)


@dataclass(frozen=True)
class SawbSettings:
    """How widely statistics are taken.

    Attributes:
        tie: which rows share a clip: "row", "tensor" or "cluster:N".
    """

    tie: str = "row"


class SawbQuantizer(TrainedQuantizer):
    """Rounds with a clip computed afresh from the weight as it is, in training and after it.

    Gradients pass to weights inside the clip; none flows through the statistics.

    Args:
        weight: (N, K) float32, by which clusters of rows are decided.
        grid: format and levels; one scale for a whole row or more.
        settings: see there.

    Raises:
        FormatError: the levels have no coefficients, or weight, grid and settings do not fit.
    """

    def __init__(self, weight: Tensor, grid: Grid, settings: SawbSettings) -> None:
        super().__init__()
        require_matrix(weight)
        self.levels = Levels(grid).to(weight.device)
        require_storable(weight, self.levels)
        self.coefficients = sawb_coefficients(grid)
        self.ties = Ties(weight, settings.tie)

    def forward(self, weight: Tensor) -> Tensor:
        """(N, K) float32 -> (N, K) float32 on the grid."""
        scale = self._scale(weight)
        ratio = weight.detach() / scale
        inside = (ratio >= self.levels.lowest) & (ratio <= self.levels.highest)
        # The difference is exactly zero: it only carries the gradient.
        passed = torch.where(inside, weight - weight.detach(), 0.0)
        return scale * self.levels.nearest(ratio) + passed

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The packed tensor whose values `forward` computes."""
        scale = self._scale(weight)
        return self.levels.pack(self.levels.codes(weight / scale), scale)

    def _scale(self, weight: Tensor) -> Tensor:
        clip = sawb_clip(weight.detach(), self.ties, self.coefficients)
        return self.ties.spread(stored_scale(clip / self.levels.reach))


def quantize_by_sawb(weight: NDArray[np.float32], grid: Grid) -> QuantizedTensor:
    """SAWB of the weight as it is; a scale for each row, or each group of its columns.

    Raises:
        FormatError: as `round_to_nearest`, or the levels have no coefficients.
    """
    return quantize_blocks(weight, grid, _round_block)


def _round_block(block: Tensor, grid: Grid) -> GridPoint:
    levels, ties = Levels(grid), Ties(block, "row")
    require_storable(block, levels)
    scale = stored_scale(sawb_clip(block, ties, sawb_coefficients(grid)) / levels.reach)
    return GridPoint(levels.codes(block / scale), scale)


def sawb_clip(weight: Tensor, ties: Ties, coefficients: tuple[float, float]) -> Tensor:
    """c0 * sqrt(E[w^2]) + c1 * E|w| of each group of rows; max|w| where that is negative.

    Args:
        weight: (N, K) float32.
        coefficients: c0 and c1.

    Returns:
        (G, 1) float32.
    """
    rows = ties.total(torch.ones_like(weight[:, 0])).clamp_min(1)
    rms = (ties.total(weight.square().mean(1)) / rows).sqrt()
    mean = ties.total(weight.abs().mean(1)) / rows
    clip = (coefficients[0] * rms + coefficients[1] * mean).float()
    return torch.where(clip > 0, clip, ties.largest(weight.abs().amax(1)))[:, None]


def sawb_coefficients(grid: Grid) -> tuple[float, float]:
    """c0 and c1 for the levels of a grid.

    Raises:
        FormatError: there are none for them.
    """
    try:
        return COEFFICIENTS[tuple(sorted(grid.levels))]
    except KeyError:
        raise FormatError(
            f"sawb has no coefficients for levels {grid.levels}; need one of the named tables"
        ) from None
