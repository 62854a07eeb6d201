"""The cpu backend's products as operators of torch: for modules, tests and measurements.

A served model does without: the native engine runs it whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantized_lm.ops import _cpu
from quantized_lm.ops.checks import require_below, require_finite


@torch.library.custom_op("secondpass::linear_cpu", mutates_args=())
def linear_cpu(
    x: Tensor, parts: Sequence[Tensor], layout: Sequence[int], isa: str, pool: int
) -> Tensor:
    """Multiply: (M, K) float32 to (M, N) float32.

    Args:
        x: (M, K) float32.
        parts: words, scale, levels as in `cpu.py`.
        layout: N, K, group_size, bits, Layout, activation rule.
        isa: instruction set, one of _cpu.instruction_sets().
        pool: handle of the native pool whose threads share the work.
    """
    y = x.new_empty((x.shape[0], layout[0]))
    _cpu.linear(x.detach(), _weight(parts, layout), isa, pool, y)
    return y


@linear_cpu.register_fake
def _linear_fake(x: Tensor, _: Sequence[Tensor], layout: Sequence[int], *_rest: object) -> Tensor:
    return x.new_empty((x.shape[0], layout[0]))


@torch.library.custom_op("secondpass::embed_cpu", mutates_args=())
def embed_cpu(
    tokens: Tensor, parts: Sequence[Tensor], layout: Sequence[int], isa: str, pool: int
) -> Tensor:
    """Dequantize rows: (T,) int64 to (T, K) float32. Other arguments as in linear_cpu.

    Raises:
        ShapeError: a token is out of range.
    """
    require_below(tokens, layout[0], "tokens")
    y = tokens.new_empty((tokens.shape[0], layout[1]), dtype=torch.float32)
    _cpu.embed(tokens, _weight(parts, layout), isa, pool, y)
    return y


@embed_cpu.register_fake
def _embed_fake(
    tokens: Tensor, _: Sequence[Tensor], layout: Sequence[int], *_rest: object
) -> Tensor:
    return tokens.new_empty((tokens.shape[0], layout[1]), dtype=torch.float32)


@torch.library.custom_op("secondpass::gather_log_prob_cpu", mutates_args=())
def gather_log_prob_cpu(  # noqa: PLR0913, PLR0917 - an operator takes no object
    hidden: Tensor,
    rows: Tensor,
    tokens: Tensor,
    parts: Sequence[Tensor],
    layout: Sequence[int],
    isa: str,
    pool: int,
) -> Tensor:
    """Compute log softmax(hidden @ weight.T)[rows, tokens]: (C,) float32.

    Raises:
        ShapeError: a row or token is out of range.
        NonFiniteError: hidden holds NaN or infinity.
    """
    require_finite(hidden, "hidden")
    require_below(rows, len(hidden), "rows")
    require_below(tokens, layout[0], "tokens")
    y = hidden.new_empty((rows.shape[0],))
    weight = _weight(parts, layout)
    _cpu.gather_log_prob(hidden.detach(), rows, tokens, weight, isa, pool, y)
    return y


@gather_log_prob_cpu.register_fake
def _gather_log_prob_fake(hidden: Tensor, rows: Tensor, *_: object) -> Tensor:
    return hidden.new_empty((rows.shape[0],))


def _weight(parts: Sequence[Tensor], layout: Sequence[int]) -> _cpu.Weight:
    words, scale, levels = parts
    return _cpu.Weight(words, scale, levels, layout)
