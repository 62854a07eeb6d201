"""The reference backend: unpack, dequantize, matmul, in torch. It is what the others must equal.

Weights stay in their canonical disk layout. Slow on purpose: every line can be checked by eye.
An operator takes tensors, numbers and strings only, so a weight crosses as [words, scale, levels].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantized_lm.ops.backend import PackedWeight
from quantized_lm.ops.checks import require_below, require_finite
from quantized_lm.quant.formats import get_format
from quantized_lm.quant.tensor import QuantizedTensor

# Rows of the output layer dequantized at a time, so that (M, V) logits are never stored.
_VOCABULARY_BLOCK = 1024


def dequantize(
    parts: Sequence[Tensor], format_name: str, num_columns: int, group_size: int
) -> Tensor:
    """Compute weight[n, k] = levels[code[n, k]] * scale[n, k // group_size].

    Args:
        parts: words (N, W) int32, the bits of the canonical uint32 words; scale (N, G) float16;
            levels (L,) int8.
        format_name: key in FORMATS.
        num_columns: K.
        group_size: columns that share a scale.

    Returns:
        (N, K) float32.
    """
    words, scale, levels = parts
    row_format = get_format(format_name)
    shifts = torch.tensor([0, 8, 16, 24])
    place_values = row_format.num_levels ** torch.arange(row_format.codes_per_byte)
    packed = (words.to(torch.int64)[:, :, None] >> shifts) & 0xFF
    codes = packed[:, :, :, None] // place_values % row_format.num_levels
    codes = codes.reshape(words.shape[0], words.shape[1] * row_format.codes_per_word)
    group_of_column = torch.arange(num_columns) // group_size
    return levels.float()[codes[:, :num_columns]] * scale.float()[:, group_of_column]


@torch.library.custom_op("secondpass::linear_reference", mutates_args=())
def linear_reference(
    x: Tensor, parts: Sequence[Tensor], format_name: str, group_size: int
) -> Tensor:
    """Multiply: (M, K) float32 to (M, N) float32. Weight arguments as in dequantize."""
    return x @ dequantize(parts, format_name, x.shape[1], group_size).T


@linear_reference.register_fake
def _linear_fake(x: Tensor, parts: Sequence[Tensor], *_: object) -> Tensor:
    return x.new_empty((x.shape[0], parts[0].shape[0]))


@torch.library.custom_op("secondpass::embed_reference", mutates_args=())
def embed_reference(
    tokens: Tensor, parts: Sequence[Tensor], format_name: str, num_columns: int, group_size: int
) -> Tensor:
    """Dequantize rows: (T,) int64 to (T, K) float32. Weight arguments as in dequantize.

    Raises:
        ShapeError: a token is out of range.
    """
    words, scale, levels = parts
    require_below(tokens, len(words), "tokens")
    return dequantize((words[tokens], scale[tokens], levels), format_name, num_columns, group_size)


@embed_reference.register_fake
def _embed_fake(
    tokens: Tensor, _: Sequence[Tensor], _format_name: str, num_columns: int, *_rest: object
) -> Tensor:
    return tokens.new_empty((tokens.shape[0], num_columns), dtype=torch.float32)


@torch.library.custom_op("secondpass::gather_log_prob_reference", mutates_args=())
def gather_log_prob_reference(
    hidden: Tensor,
    rows: Tensor,
    tokens: Tensor,
    parts: Sequence[Tensor],
    format_name: str,
    group_size: int,
) -> Tensor:
    """Compute logit[rows, tokens] - logsumexp(logit[rows]) over blocks of the vocabulary.

    Args:
        hidden: (M, K) float32.
        rows: (C,) int64, row of hidden that each answer is for.
        tokens: (C,) int64, row of the weight that each answer is for.
        parts: the (V, K) weight; with format_name and group_size as in dequantize.
        format_name: key in FORMATS.
        group_size: columns that share a scale.

    Returns:
        (C,) float32.

    Raises:
        ShapeError: a row or token is out of range.
        NonFiniteError: hidden holds NaN or infinity.
    """
    words, scale, levels = parts
    require_finite(hidden, "hidden")
    require_below(rows, len(hidden), "rows")
    require_below(tokens, len(words), "tokens")
    log_normalizer = torch.full((len(hidden),), -torch.inf)
    logit = torch.empty(len(rows))
    for start in range(0, len(words), _VOCABULARY_BLOCK):
        block = slice(start, start + _VOCABULARY_BLOCK)
        block_parts = (words[block], scale[block], levels)
        logits = hidden @ dequantize(block_parts, format_name, hidden.shape[1], group_size).T
        log_normalizer = torch.logaddexp(log_normalizer, logits.logsumexp(dim=1))
        is_here = (tokens >= start) & (tokens < start + _VOCABULARY_BLOCK)
        logit[is_here] = logits[rows[is_here], tokens[is_here] - start]
    return logit - log_normalizer[rows]


@gather_log_prob_reference.register_fake
def _gather_log_prob_fake(hidden: Tensor, rows: Tensor, *_: object) -> Tensor:
    return hidden.new_empty((rows.shape[0],))


@dataclass(frozen=True)
class ReferenceBackend:
    """Works wherever torch does."""

    name: str = "reference"
    variant: str = "torch"

    def prepare(self, tensor: QuantizedTensor) -> PackedWeight:
        """Copy the canonical arrays to torch."""
        return PackedWeight(
            backend=self,
            format=tensor.format,
            shape=tensor.shape,
            group_size=tensor.group_size,
            words=torch.tensor(tensor.words.view(np.int32)),
            scale=torch.tensor(tensor.scale),
            levels=torch.tensor(tensor.levels),
        )

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """(M, K) float32 times weight transposed: (M, N) float32."""
        y: Tensor = linear_reference(x, weight.parts, weight.format, weight.group_size)
        return y

    def embed(self, weight: PackedWeight, tokens: Tensor) -> Tensor:
        """Dequantize rows: (T,) int64 to (T, K) float32."""
        rows: Tensor = embed_reference(
            tokens, weight.parts, weight.format, weight.shape[1], weight.group_size
        )
        return rows

    def gather_log_prob(
        self, hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor
    ) -> Tensor:
        """Compute log softmax(hidden @ weight.T)[rows, tokens]: (C,) float32."""
        log_prob: Tensor = gather_log_prob_reference(
            hidden, rows, tokens, weight.parts, weight.format, weight.group_size
        )
        return log_prob
