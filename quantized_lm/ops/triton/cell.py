"""One step of an LSTM layer: new states from the gates' sums, rounded for the next."""

from __future__ import annotations

import triton
import triton.language as tl

from quantized_lm.ops.triton.quantize import round_row


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); NaN stays."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """2 / (1 + exp(-2 x)) - 1."""
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def load_gate(input_ptr, recurrent_ptr, row, member, gate, column, is_column, DIM: tl.constexpr):
    """input + recurrent of one gate."""
    below = tl.load(input_ptr + row * 4 * DIM + gate * DIM + column, mask=is_column, other=0.0)
    past = tl.load(
        recurrent_ptr + member * 4 * DIM + gate * DIM + column, mask=is_column, other=0.0
    )
    return below + past


@triton.jit
def cell_kernel(input_ptr, recurrent_ptr, members_ptr, slots_ptr, above_ptr, hidden_ptr, cell_ptr,
                codes_ptr, step_ptr, DIM: tl.constexpr, BLOCK: tl.constexpr,
                QUADS: tl.constexpr):  # fmt: skip
    """One node: c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c).

    Args:
        members_ptr: (nodes of the level,) int32, their rows among those of the pass.
        slots_ptr, above_ptr: likewise, where they and their parents are kept.
        input_ptr: (rows, 4, DIM), of gates i, f, g, o. recurrent_ptr: (nodes of the level, 4, DIM).
        hidden_ptr: (rows, DIM) float32, gets h.
        cell_ptr: (slots, DIM) float32. codes_ptr, step_ptr: (slots, ..), get h rounded.
    """
    member = tl.program_id(0)
    row = tl.load(members_ptr + member)
    slot = tl.load(slots_ptr + member).to(tl.int64)
    above = tl.load(above_ptr + member).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_column = column < DIM
    i = load_gate(input_ptr, recurrent_ptr, row, member, 0, column, is_column, DIM)
    f = load_gate(input_ptr, recurrent_ptr, row, member, 1, column, is_column, DIM)
    g = load_gate(input_ptr, recurrent_ptr, row, member, 2, column, is_column, DIM)
    o = load_gate(input_ptr, recurrent_ptr, row, member, 3, column, is_column, DIM)
    past = tl.load(cell_ptr + above * DIM + column, mask=is_column, other=0.0)
    cell = sigmoid(f) * past + sigmoid(i) * tanh(g)
    hidden = tl.where(is_column, sigmoid(o) * tanh(cell), 0.0)
    tl.store(cell_ptr + slot * DIM + column, cell, mask=is_column)
    tl.store(hidden_ptr + row * DIM + column, hidden, mask=is_column)
    codes, step = round_row(hidden, BLOCK, QUADS)
    tl.store(codes_ptr + slot * DIM + column, codes, mask=is_column)
    tl.store(step_ptr + slot, step)
