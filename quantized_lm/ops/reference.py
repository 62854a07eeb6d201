"""The reference backend, in torch: the meaning of packed weights. The others must equal it.

With float32 activations it dequantizes and multiplies; with int8 activations it computes the same
integers and the same float32 steps as the native kernels. Weights stay in their canonical disk
layout. Slow on purpose: every line can be checked by eye.
An operator takes tensors, numbers and strings only, so a weight crosses as [words, scale, levels].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from quantized_lm.ops.backend import Activations, PackedWeight
from quantized_lm.ops.checks import require_below, require_finite
from quantized_lm.quant.activations import QuantizedActivations, quantize_activations
from quantized_lm.quant.formats import get_format
from quantized_lm.quant.tensor import QuantizedTensor

# Rows of the output layer dequantized at a time, so that (M, V) logits are never stored.
_VOCABULARY_BLOCK = 1024


def unpack_levels(parts: Sequence[Tensor], format_name: str, num_columns: int) -> Tensor:
    """Compute levels[code[n, k]].

    Args:
        parts: words (N, W) int32, the bits of the canonical uint32 words; scale (N, G) float16;
            levels (L,) int8.
        format_name: key in FORMATS.
        num_columns: K.

    Returns:
        (N, K) int8.
    """
    words, _, levels = parts
    row_format = get_format(format_name)
    shifts = torch.tensor([0, 8, 16, 24])
    place_values = row_format.num_levels ** torch.arange(row_format.codes_per_byte)
    packed = (words.to(torch.int64)[:, :, None] >> shifts) & 0xFF
    codes = packed[:, :, :, None] // place_values % row_format.num_levels
    codes = codes.reshape(words.shape[0], words.shape[1] * row_format.codes_per_word)
    return levels[codes[:, :num_columns]]


def dequantize(
    parts: Sequence[Tensor], format_name: str, num_columns: int, group_size: int
) -> Tensor:
    """Compute weight[n, k] = levels[code[n, k]] * scale[n, k // group_size].

    Args:
        parts: as in unpack_levels.
        format_name: key in FORMATS.
        num_columns: K.
        group_size: columns that share a scale.

    Returns:
        (N, K) float32.
    """
    group_of_column = torch.arange(num_columns) // group_size
    return (
        unpack_levels(parts, format_name, num_columns).float()
        * parts[1].float()[:, group_of_column]
    )


def multiply_codes(
    activations: QuantizedActivations, parts: Sequence[Tensor], format_name: str, group_size: int
) -> Tensor:
    """Multiply int8 codes by a packed weight: the definition of every int8 kernel.

    y[m, n] = step[m] * sum over groups g of scale[n, g] * sum over k in g of
              level[n, k] * code[m, k]

    The inner sums are exact integers, rounded to float32 once; then every product and every sum
    over groups, in ascending order from 0, is one float32 operation, the product with step last.

    Args:
        activations: (M, K), quantized by the format's activation_rule.
        parts: as in unpack_levels.
        format_name: key in FORMATS.
        group_size: columns that share a scale.

    Returns:
        (M, N) float32.
    """
    # In float64 every sum of up to 2^38 such products is exact, whatever its order.
    codes = activations.codes.double()
    levels = unpack_levels(parts, format_name, codes.shape[1]).double()
    scale = parts[1].float()
    y = torch.zeros(len(codes), len(levels))
    for group in range(scale.shape[1]):
        columns = slice(group * group_size, (group + 1) * group_size)
        sums = codes[:, columns] @ levels[:, columns].T
        y = y + sums.float() * scale[:, group]
    return y * activations.step[:, None]


@torch.library.custom_op("secondpass::linear_reference", mutates_args=())
def linear_reference(
    x: Tensor, parts: Sequence[Tensor], format_name: str, group_size: int
) -> Tensor:
    """Multiply: (M, K) float32 to (M, N) float32. Weight arguments as in dequantize."""
    return x @ dequantize(parts, format_name, x.shape[1], group_size).T


@torch.library.custom_op("secondpass::linear_int8_reference", mutates_args=())
def linear_int8_reference(
    x: Tensor, parts: Sequence[Tensor], format_name: str, group_size: int
) -> Tensor:
    """Multiply by way of int8 activations: (M, K) float32 to (M, N) float32."""
    codes = quantize_activations(x, get_format(format_name).activation_rule)
    return multiply_codes(codes, parts, format_name, group_size)


@linear_reference.register_fake
@linear_int8_reference.register_fake
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
    """Compute log softmax(hidden @ weight.T)[rows, tokens].

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
    _require_answerable(hidden, rows, tokens, len(parts[0]))

    def multiply(block: Sequence[Tensor]) -> Tensor:
        return hidden @ dequantize(block, format_name, hidden.shape[1], group_size).T

    return _gather_log_prob(multiply, rows, tokens, parts)


@torch.library.custom_op("secondpass::gather_log_prob_int8_reference", mutates_args=())
def gather_log_prob_int8_reference(
    hidden: Tensor,
    rows: Tensor,
    tokens: Tensor,
    parts: Sequence[Tensor],
    format_name: str,
    group_size: int,
) -> Tensor:
    """Compute the same from int8 activations; logits are float32, their softmax is float64."""
    _require_answerable(hidden, rows, tokens, len(parts[0]))
    codes = quantize_activations(hidden, get_format(format_name).activation_rule)

    def multiply(block: Sequence[Tensor]) -> Tensor:
        return multiply_codes(codes, block, format_name, group_size).double()

    return _gather_log_prob(multiply, rows, tokens, parts)


@gather_log_prob_reference.register_fake
@gather_log_prob_int8_reference.register_fake
def _gather_log_prob_fake(hidden: Tensor, rows: Tensor, *_: object) -> Tensor:
    return hidden.new_empty((rows.shape[0],))


def _require_answerable(hidden: Tensor, rows: Tensor, tokens: Tensor, vocab_size: int) -> None:
    require_finite(hidden, "hidden")
    require_below(rows, len(hidden), "rows")
    require_below(tokens, vocab_size, "tokens")


def _gather_log_prob(
    multiply: Callable[[Sequence[Tensor]], Tensor],
    rows: Tensor,
    tokens: Tensor,
    parts: Sequence[Tensor],
) -> Tensor:
    """Compute logit[rows, tokens] - logsumexp(logit[rows]) over blocks of the vocabulary.

    Args:
        multiply: the parts of some rows of the weight to their logits (M, rows), in the
            precision that the log-sum-exp shall have.
    """
    words, scale, levels = parts
    log_normalizer = torch.tensor(-torch.inf)
    logit = torch.empty(len(rows))
    for start in range(0, len(words), _VOCABULARY_BLOCK):
        block = slice(start, start + _VOCABULARY_BLOCK)
        logits = multiply((words[block], scale[block], levels))
        log_normalizer = torch.logaddexp(log_normalizer, logits.logsumexp(dim=1))
        is_here = (tokens >= start) & (tokens < start + _VOCABULARY_BLOCK)
        logit[is_here] = logits[rows[is_here], tokens[is_here] - start].float()
    return (logit - log_normalizer[rows]).float()


@dataclass(frozen=True)
class _Products:
    """The two operators that depend on what products are computed from."""

    linear: Callable[..., Tensor]
    gather_log_prob: Callable[..., Tensor]


_PRODUCTS: Mapping[Activations, _Products] = MappingProxyType(
    {
        "float32": _Products(linear_reference, gather_log_prob_reference),
        "int8": _Products(linear_int8_reference, gather_log_prob_int8_reference),
    }
)


@dataclass(frozen=True)
class ReferenceBackend:
    """Works wherever torch does.

    Attributes:
        activations: "float32" for what the formats mean, "int8" for what int8 kernels compute.
    """

    name: str = "reference"
    activations: Activations = "float32"

    @property
    def variant(self) -> str:
        """Which arithmetic, for reports."""
        return "torch" if self.activations == "float32" else self.activations

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
        linear = _PRODUCTS[self.activations].linear
        return linear(x, weight.parts, weight.format, weight.group_size)

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
        gather = _PRODUCTS[self.activations].gather_log_prob
        return gather(hidden, rows, tokens, weight.parts, weight.format, weight.group_size)
