"""Quantization inside the training loop: rounding with gradients for weights and row scales.

Learned step size (Esser et al., ICLR 2020): the forward pass uses scale * level(weight / scale);
the backward pass takes rounding for the identity inside the range of the levels, so weights and
scales both learn. Pure maths on one matrix: no data, no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.levels import Levels, require_matrix
from quantized_lm.quant.quantizers.projection import project_tied
from quantized_lm.quant.quantizers.scales import MANTISSA_BITS, log_of, scale_of
from quantized_lm.quant.quantizers.ties import Ties
from quantized_lm.quant.quantizers.trained import TrainedQuantizer
from quantized_lm.quant.tensor import QuantizedTensor


@dataclass(frozen=True)
class LearnedSettings:
    """How scales are shared and stored.

    Attributes:
        tie: which rows share a scale: "row", "tensor" or "cluster:N".
        scale_mantissa_bits: of float16's 10 that scales keep; with fewer, scales repeat and
            compress well.
        trusts_half_steps: weights up to half a step beyond the outermost levels get gradients too:
            the trust region of QuEST (Panferov et al., 2025) instead of the range of the levels.
    """

    tie: str = "row"
    scale_mantissa_bits: int = MANTISSA_BITS
    trusts_half_steps: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.scale_mantissa_bits <= MANTISSA_BITS:
            raise FormatError(
                f"scale_mantissa_bits is {self.scale_mantissa_bits}; need 0 to {MANTISSA_BITS}"
            )


class LearnedScale(TrainedQuantizer):
    """A parametrization: float weight in, the values its packed form will have out.

    Scales are learned as logarithms, so that one learning rate fits every row; Adam's steps are
    then relative, and the gradient needs none of the factors that Esser et al. scale it by. They
    are rounded to float16 as they will be stored, and start where the squared error is least, the
    smallest a little above (`log_of`).

    Args:
        weight: (N, K) float32, what the scales are fitted to.
        grid: format and levels; one scale for a whole row or more.
        settings: see there.

    Raises:
        FormatError: weight, grid and settings do not fit together.
    """

    def __init__(self, weight: Tensor, grid: Grid, settings: LearnedSettings) -> None:
        super().__init__()
        require_matrix(weight)
        self.settings = settings
        self.ties = Ties(weight, settings.tie)
        self.levels = Levels(grid).to(weight.device)
        self.log_scale = nn.Parameter(log_of(project_tied(weight, self.levels, self.ties).scale))

    def forward(self, weight: Tensor) -> Tensor:
        """(N, K) float32 -> (N, K) float32 on the grid."""
        scale = self._scale()
        ratio = weight / scale
        on_grid = scale * self.levels.straight_through(ratio)
        if not self.settings.trusts_half_steps:
            return on_grid
        inside = ratio.detach().clamp(self.levels.lowest, self.levels.highest)
        beyond = (ratio.detach() - inside).abs()
        trusted = (beyond > 0) & (beyond <= self.levels.half_step)
        return on_grid + torch.where(trusted, weight - weight.detach(), 0.0)

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The packed tensor whose values `forward` computes."""
        scale = self._scale()
        return self.levels.pack(self.levels.codes(weight / scale), scale)

    def _scale(self) -> Tensor:
        """(N, 1) or (1, 1) float32 as stored, with the gradient of the exact ones."""
        return self.ties.spread(scale_of(self.log_scale, self.settings.scale_mantissa_bits))
