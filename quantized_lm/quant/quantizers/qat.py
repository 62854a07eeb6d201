"""Quantization inside the training loop: rounding with gradients for weights and row scales.

Learned step size (Esser et al., ICLR 2020): the forward pass uses scale * level(weight / scale);
the backward pass takes rounding for the identity inside the range of the levels, so weights and
scales both learn. Pure maths on one matrix: no data, no model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor


class FakeQuantizer(nn.Module):
    """A parametrization: float weight in, the values its packed form will have out.

    Scales are learned as logarithms, one per output row, so one learning rate fits every row, and
    are rounded to float16 as they will be stored. They start at the best of round-to-nearest.

    Args:
        weight: (N, K) float32, what the scales are fitted to.
        grid: format and levels; scales are per row.
    """

    levels: Tensor
    midpoints: Tensor

    def __init__(self, weight: Tensor, grid: Grid) -> None:
        super().__init__()
        self.format = grid.format
        start = round_to_nearest(weight.detach().numpy(), Grid(grid.format, grid.levels))
        smallest = float(np.finfo(np.float16).tiny)  # an all-zero row must be able to leave zero
        scale = torch.from_numpy(start.scale.astype(np.float32)).clamp_min(smallest)
        self.log_scale = nn.Parameter(scale.log())
        levels = torch.tensor(sorted(grid.levels), dtype=torch.float32)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("midpoints", (levels[:-1] + levels[1:]) / 2, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """(N, K) float32 -> (N, K) float32 on the grid."""
        scale = self._scale()
        ratio = (weight / scale).clamp(self.levels[0], self.levels[-1])
        rounded = self.levels[torch.bucketize(ratio.detach(), self.midpoints)]
        return scale * (ratio + (rounded - ratio).detach())

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The packed tensor whose values `forward` computes."""
        scale = self._scale()
        codes = torch.bucketize(weight / scale, self.midpoints)
        return QuantizedTensor.from_codes(
            codes.numpy().astype(np.uint8),
            scale.numpy().astype(np.float16),
            self.levels.numpy().astype(np.int8),
            format=self.format,
        )

    def _scale(self) -> Tensor:
        """(N, 1) float32 values of float16 precision, with the gradient of the exact ones."""
        scale = self.log_scale.exp()
        return scale + (scale.half().float() - scale).detach()
