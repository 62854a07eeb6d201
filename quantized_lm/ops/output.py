"""The output layer: product, log-sum-exp and gather in one pass, never storing (M, V) logits."""

from __future__ import annotations

from torch import Tensor

from quantized_lm.errors import ShapeError
from quantized_lm.ops.backend import PackedWeight
from quantized_lm.ops.checks import require_indices, require_matrix


def gather_log_prob(hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor) -> Tensor:
    """Compute log P(tokens[c] | hidden[rows[c]]) under softmax(hidden @ weight.T).

    Args:
        hidden: (M, K) float32, contiguous, finite.
        weight: (V, K) packed.
        rows: (C,) int64, each in [0, M).
        tokens: (C,) int64, each in [0, V).

    Returns:
        (C,) float32 natural log-probabilities.

    Raises:
        ShapeError: the arguments do not fit together, or an index is out of range.
        NonFiniteError: hidden holds NaN or infinity.
    """
    require_matrix(hidden, weight.shape[1], "hidden")
    require_indices(rows, "rows")
    require_indices(tokens, "tokens")
    if rows.shape != tokens.shape:
        raise ShapeError(f"rows are {tuple(rows.shape)}, tokens {tuple(tokens.shape)}; need one")
    return weight.backend.gather_log_prob(hidden, weight, rows, tokens)
