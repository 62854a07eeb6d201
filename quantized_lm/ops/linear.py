"""Multiply by a packed weight: check shapes once, then let the weight's backend work."""

from __future__ import annotations

from torch import Tensor

from quantized_lm.errors import ShapeError
from quantized_lm.ops.backend import PackedWeight
from quantized_lm.ops.checks import require_matrix


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """Compute y[m, n] = sum over k of weight[n, k] * x[m, k] (+ bias[n]), in float32.

    A NaN in x gives NaN in its own row of y and in no other.

    Args:
        x: (M, K) float32, contiguous; M may be 0.
        weight: (N, K) packed.
        bias: (N,) float32 or None.

    Returns:
        (M, N) float32.

    Raises:
        ShapeError: x or bias does not fit the weight.
    """
    require_matrix(x, weight.shape[1], "x")
    if bias is not None and (bias.shape != (weight.shape[0],) or bias.dtype != x.dtype):
        raise ShapeError(
            f"bias is {bias.dtype} {tuple(bias.shape)}; need float32 ({weight.shape[0]},)"
        )
    y = weight.backend.linear(x, weight)
    return y if bias is None else y + bias
