"""What a quantizer that works inside a training loop is: a parametrization of one matrix.

It knows one matrix and how far training has come: no data, no model, no optimizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from quantized_lm.quant.tensor import QuantizedTensor


class TrainedQuantizer(nn.Module, ABC):
    """Registered by `torch.nn.utils.parametrize` on a weight (N, K) float32.

    Its parameters train along with the weight; those whose name ends in `log_scale` get the rate
    of scales. Everything that must survive a kill is a parameter or a buffer.
    """

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """What the model computes with, (N, K) float32. In eval mode: what is packed, exactly."""

    @abstractmethod
    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The packed tensor whose values `forward` gives in eval mode."""

    def penalty(self, weight: Tensor) -> Tensor:
        """A scalar added to the loss of every update, in nats per token."""
        return weight.new_zeros(())

    def step(self, weight: Tensor, progress: float) -> None:
        """Called after every update, without gradients.

        Args:
            weight: as it now is.
            progress: updates made over updates planned, above 0 and up to 1.
        """
