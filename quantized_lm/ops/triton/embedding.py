"""Rows of the packed embedding, and what a node of a tree begins with."""

from __future__ import annotations

import triton
import triton.language as tl

from quantized_lm.ops.triton.decode import decode_columns
from quantized_lm.ops.triton.quantize import RMS_NORM, normalize


@triton.jit
def embed_kernel(words_ptr, scale_ptr, levels_ptr, tokens_ptr, depths_ptr, positions_ptr, x_ptr,
                 first_ptr, epsilon, COLUMNS: tl.constexpr, GROUP_SIZE: tl.constexpr,
                 GROUPS: tl.constexpr, ROW_BYTES: tl.constexpr, BITS: tl.constexpr,
                 TILE: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
                 NORMALIZES: tl.constexpr, HAS_POSITIONS: tl.constexpr,
                 KEEPS: tl.constexpr):  # fmt: skip
    """x = the token's row (rms-normalized with NORMALIZES) plus the depth's position.

    Args:
        positions_ptr: (.., COLUMNS) float32. first_ptr: with KEEPS, gets x too.
    """
    index = tl.program_id(0)
    token = tl.load(tokens_ptr + index)
    column = tl.arange(0, BLOCK)
    is_column = column < COLUMNS
    group = column // GROUP_SIZE
    stored = column + group * (8 // BITS * TILE * BLOCKS - GROUP_SIZE)
    level = decode_columns(words_ptr, levels_ptr, token, stored, is_column, ROW_BYTES, TILE, BITS)
    scale = tl.load(scale_ptr + token * GROUPS + group, mask=is_column, other=0.0)
    x = level.to(tl.float32) * scale
    if NORMALIZES:
        x = normalize(x, is_column, epsilon, COLUMNS, RMS_NORM)
    if HAS_POSITIONS:
        depth = tl.load(depths_ptr + index)
        x = x + tl.load(positions_ptr + depth * COLUMNS + column, mask=is_column, other=0.0)
    tl.store(x_ptr + index * COLUMNS + column, x, mask=is_column)
    if KEEPS:
        tl.store(first_ptr + index * COLUMNS + column, x, mask=is_column)
