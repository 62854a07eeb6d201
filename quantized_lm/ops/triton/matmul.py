"""y = epilogue(step[m] * sum over g of scale[n, g] * sum over k in g of level[n, k] * x[m, k]).

Weights are on the left of the dot: the compiler then decodes them into the registers from which the
tensor cores read, and a tile of nodes may be as narrow as 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantized_lm.ops.triton.decode import decode_plane, load_block

NO_ACTIVATION = tl.constexpr(0)
SQUARED_RELU = tl.constexpr(1)
GELU_TANH = tl.constexpr(2)


@triton.jit
def multiply_group(words_ptr, levels_ptr, codes_ptr, row, node, group, COLUMNS: tl.constexpr,
                   GROUP_SIZE: tl.constexpr, ROW_BYTES: tl.constexpr, BITS: tl.constexpr,
                   TILE: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
                   NODES: tl.constexpr, PLAIN: tl.constexpr, TABLES: tl.constexpr):  # fmt: skip
    """Exact sums of one group of columns: (ROWS, NODES) int32.

    Args:
        row: (ROWS,) rows of the weight, all of which exist. node: (NODES,) likewise, of the codes.
    """
    PLANES: tl.constexpr = 8 // BITS
    IS_EVEN: tl.constexpr = GROUP_SIZE == BLOCKS * PLANES * TILE and COLUMNS % GROUP_SIZE == 0
    sums = tl.zeros((ROWS, NODES), tl.int32)
    for block in range(BLOCKS):
        loaded = load_block(words_ptr, row, group * BLOCKS + block, ROW_BYTES, TILE, BITS, PLAIN)
        for plane in tl.static_range(PLANES):
            level = decode_plane(loaded, levels_ptr, TILE, BITS, plane, PLAIN, TABLES)
            within = (block * PLANES + plane) * TILE + tl.arange(0, TILE)
            column = group * GROUP_SIZE + within
            at = node[None, :] * COLUMNS + column[:, None]
            if IS_EVEN:
                code = tl.load(codes_ptr + at)
            else:
                is_column = (within < GROUP_SIZE) & (column < COLUMNS)
                code = tl.load(codes_ptr + at, mask=is_column[:, None], other=0)
            sums = tl.dot(level, code, sums, out_dtype=tl.int32)
    return sums


@triton.jit
def multiply(words_ptr, scale_ptr, levels_ptr, codes_ptr, row, node, COLUMNS: tl.constexpr,
             GROUP_SIZE: tl.constexpr, GROUPS: tl.constexpr, ROW_BYTES: tl.constexpr,
             BITS: tl.constexpr, TILE: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
             NODES: tl.constexpr, PLAIN: tl.constexpr, TABLES: tl.constexpr):  # fmt: skip
    """Scaled sums without the step of x: (ROWS, NODES) float32."""
    if GROUPS == 1:
        sums = multiply_group(words_ptr, levels_ptr, codes_ptr, row, node, 0, COLUMNS, GROUP_SIZE,
                              ROW_BYTES, BITS, TILE, BLOCKS, ROWS, NODES, PLAIN,
                              TABLES)  # fmt: skip
        return sums.to(tl.float32) * tl.load(scale_ptr + row)[:, None]
    else:  # noqa: RET505 - only branches of a constant are left out of the program
        total = tl.zeros((ROWS, NODES), tl.float32)
        for group in range(GROUPS):
            sums = multiply_group(words_ptr, levels_ptr, codes_ptr, row, node, group, COLUMNS,
                                  GROUP_SIZE, ROW_BYTES, BITS, TILE, BLOCKS, ROWS, NODES, PLAIN,
                                  TABLES)  # fmt: skip
            scale = tl.load(scale_ptr + row * GROUPS + group)
            total = total + sums.to(tl.float32) * scale[:, None]
        return total


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """max(y, 0)^2, or y / 2 * (1 + tanh(u)) = y / (1 + exp(-2 u)), or y."""
    if ACTIVATION == SQUARED_RELU:
        positive = tl.where(y < 0, 0.0, y)  # NaN stays
        return positive * positive
    elif ACTIVATION == GELU_TANH:  # noqa: RET505
        twice = -2.0 * 0.7978845608 * (y + 0.044715 * y * y * y)
        return y / (1.0 + tl.exp(tl.minimum(twice, 87.0)))
    else:
        return y


@triton.jit
def matmul_kernel(words_ptr, scale_ptr, levels_ptr, codes_ptr, step_ptr, nodes_ptr, bias_ptr, y_ptr,
                  num_nodes, N: tl.constexpr, COLUMNS: tl.constexpr, GROUP_SIZE: tl.constexpr,
                  GROUPS: tl.constexpr, ROW_BYTES: tl.constexpr, BITS: tl.constexpr,
                  TILE: tl.constexpr, BLOCKS: tl.constexpr, HAS_NODES: tl.constexpr,
                  HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ADDS: tl.constexpr,
                  STRIDE: tl.constexpr, ROWS: tl.constexpr, NODES: tl.constexpr,
                  PLAIN: tl.constexpr, TABLES: tl.constexpr):  # fmt: skip
    """One tile of ROWS rows of the weight by NODES nodes.

    Args:
        codes_ptr: (.., COLUMNS) int8. step_ptr: (..,) float32. y_ptr: (num_nodes, STRIDE) float32.
        nodes_ptr: (num_nodes,) int32, which row of codes and step; without HAS_NODES its own.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    node = tl.program_id(1) * NODES + tl.arange(0, NODES)
    is_row, is_node = row < N, node < num_nodes
    # What is outside reads what is inside, which costs no masks, and is not stored.
    safe_row = tl.minimum(row, N - 1)
    source = tl.minimum(node, num_nodes - 1)
    if HAS_NODES:
        source = tl.load(nodes_ptr + source)
    y = multiply(words_ptr, scale_ptr, levels_ptr, codes_ptr, safe_row, source, COLUMNS, GROUP_SIZE,
                 GROUPS, ROW_BYTES, BITS, TILE, BLOCKS, ROWS, NODES, PLAIN, TABLES)  # fmt: skip
    y = y * tl.load(step_ptr + source)[None, :]
    if HAS_BIAS:
        y = y + tl.load(bias_ptr + safe_row)[:, None]
    y = activate(y, ACTIVATION)
    at = node[None, :] * STRIDE + row[:, None]
    is_inside = is_row[:, None] & is_node[None, :]
    if ADDS:
        y = tl.load(y_ptr + at, mask=is_inside, other=0.0) + y
    tl.store(y_ptr + at, y, mask=is_inside)
