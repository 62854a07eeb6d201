"""A row of the residual stream, mixed and normalized, as int8 codes and one step.

One program per row, whose block is set by the width alone: a row's numbers do not depend on what
else is in the batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_NORM = tl.constexpr(0)
RMS_NORM = tl.constexpr(1)
LAYER_NORM = tl.constexpr(2)
_ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, ties to even
_SMALLEST_STEP = tl.constexpr(2.0**-100)


@triton.jit
def round_row(x, BLOCK: tl.constexpr, QUADS: tl.constexpr):
    """`quantize_activations` of one row, (BLOCK,) float32, zero beyond its end: codes and step."""
    magnitude = tl.abs(x)
    step = tl.div_rn(tl.max(magnitude, axis=0), 127.0)
    if QUADS:
        even, odd = tl.split(tl.reshape(magnitude, (BLOCK // 2, 2)))
        first, second = tl.split(tl.reshape(even + odd, (BLOCK // 4, 2)))
        step = tl.maximum(step, tl.div_rn(tl.max(first + second, axis=0), 253.0))
    # A maximum may lose NaN, of which no comparison is true.
    odd_ones = tl.sum(tl.where(magnitude < float("inf"), 0, 1), axis=0)
    is_number = (odd_ones == 0) & (step < float("inf"))
    has_codes = is_number & (step >= _SMALLEST_STEP)
    scaled = x * tl.div_rn(1.0, tl.where(has_codes, step, 1.0))
    rounded = (tl.where(has_codes, scaled, 0.0) + _ROUNDING) - _ROUNDING
    kept = tl.where(has_codes, step, 0.0)
    return rounded.to(tl.int8), tl.where(is_number, kept, float("nan"))


@triton.jit
def normalize(x, is_column, epsilon, DIM: tl.constexpr, NORM: tl.constexpr):
    """(x - mean) / sqrt(variance + epsilon) for LAYER_NORM; the mean is 0 for RMS_NORM."""
    if NORM == LAYER_NORM:
        x = tl.where(is_column, x - tl.sum(x, axis=0) / DIM, 0.0)
    if NORM != NO_NORM:
        x = x * tl.div_rn(1.0, tl.sqrt_rn(tl.sum(x * x, axis=0) / DIM + epsilon))
    return x


@triton.jit
def quantize_kernel(x_ptr, first_ptr, gain_ptr, bias_ptr, members_ptr, rows_ptr, codes_ptr,
                    step_ptr, mix_x, mix_first, epsilon, DIM: tl.constexpr, BLOCK: tl.constexpr,
                    MIXES: tl.constexpr, NORM: tl.constexpr, HAS_GAIN: tl.constexpr,
                    HAS_BIAS: tl.constexpr, HAS_MEMBERS: tl.constexpr, HAS_ROWS: tl.constexpr,
                    QUADS: tl.constexpr):  # fmt: skip
    """One row.

    Args:
        x_ptr: (M, DIM) float32; with MIXES x = mix_x * x + mix_first * first, which is stored too.
        members_ptr: int32, with HAS_MEMBERS the rows that are rounded.
        rows_ptr: (M,) int32, with HAS_ROWS where the codes go.
    """
    row = tl.program_id(0)
    target = row
    if HAS_ROWS:
        target = tl.load(rows_ptr + row)
    if HAS_MEMBERS:
        row = tl.load(members_ptr + row)
    column = tl.arange(0, BLOCK)
    is_column = column < DIM
    x = tl.load(x_ptr + row * DIM + column, mask=is_column, other=0.0)
    if MIXES:
        first = tl.load(first_ptr + row * DIM + column, mask=is_column, other=0.0)
        x = mix_x * x + mix_first * first
        tl.store(x_ptr + row * DIM + column, x, mask=is_column)
    x = normalize(x, is_column, epsilon, DIM, NORM)
    if HAS_GAIN:
        x = x * tl.load(gain_ptr + column, mask=is_column, other=0.0)
    if HAS_BIAS:
        x = x + tl.load(bias_ptr + column, mask=is_column, other=0.0)
    codes, step = round_row(x, BLOCK, QUADS)
    tl.store(codes_ptr + target * DIM + column, codes, mask=is_column)
    tl.store(step_ptr + target, step)
