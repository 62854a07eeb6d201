"""Look rows of a packed embedding up, dequantizing no other row."""

from __future__ import annotations

from torch import Tensor

from quantized_lm.ops.backend import PackedWeight
from quantized_lm.ops.checks import require_indices


def embed(weight: PackedWeight, tokens: Tensor) -> Tensor:
    """Compute weight[tokens].

    Args:
        weight: (V, K) packed.
        tokens: (T,) int64, each in [0, V).

    Returns:
        (T, K) float32.

    Raises:
        ShapeError: tokens are not an int64 vector, or one is out of range.
    """
    require_indices(tokens, "tokens")
    return weight.backend.embed(weight, tokens)
