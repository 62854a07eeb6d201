"""Attention of each node to its ancestors and itself: never a mask, never a key of another path.

Keys and values of every node that was run stay in slots of a store, (slots, 2, dim) float32 a
layer. A node's sums depend on its own path alone, so it gets the same bits in any batch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def trace_kernel(slots_ptr, depths_ptr, starts_ptr, parent_ptr, paths_ptr, num_nodes,
                 BLOCK: tl.constexpr):  # fmt: skip
    """Write the slots of each node's path, root first, from what every slot knows of its parent.

    Args:
        slots_ptr, depths_ptr, starts_ptr: (num_nodes,) int32; a path starts at its place in paths.
        parent_ptr: (slots,) int32, the slot above each; of these nodes too, see `link_kernel`.
    """
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_node = node < num_nodes
    slot = tl.load(slots_ptr + node, mask=is_node, other=0)
    depth = tl.load(depths_ptr + node, mask=is_node, other=-1)
    start = tl.load(starts_ptr + node, mask=is_node, other=0)
    for step in range(tl.max(depth, axis=0) + 1):
        is_left = depth >= step
        tl.store(paths_ptr + start + depth - step, slot, mask=is_left)
        slot = tl.load(parent_ptr + slot, mask=is_left & (depth > step), other=0)


@triton.jit
def link_kernel(slots_ptr, parents_ptr, parent_ptr, num_nodes, BLOCK: tl.constexpr):
    """parent[slots[m]] = parents[m]."""
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_node = node < num_nodes
    slot = tl.load(slots_ptr + node, mask=is_node, other=0)
    tl.store(parent_ptr + slot, tl.load(parents_ptr + node, mask=is_node, other=0), mask=is_node)


@triton.jit
def load_halves(x_ptr, at, offset, is_low, is_high, WIDTH: tl.constexpr):
    """The two halves of one head's numbers, (BLOCK,) each."""
    low = tl.load(x_ptr + at + offset, mask=is_low, other=0.0)
    return low, tl.load(x_ptr + at + WIDTH + offset, mask=is_high, other=0.0)


@triton.jit
def place_head(low, high, epsilon, cos, sin, HEAD_DIM: tl.constexpr, NORMALIZES: tl.constexpr,
               TURNS: tl.constexpr):  # fmt: skip
    """A query or a key, divided by its root mean square and turned by its depth."""
    if NORMALIZES:
        squares = tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)
        factor = tl.div_rn(1.0, tl.sqrt_rn(squares / HEAD_DIM + epsilon))
        low, high = low * factor, high * factor
    if TURNS:
        return low * cos - high * sin, low * sin + high * cos
    else:  # noqa: RET505 - only branches of a constant are left out of the program
        return low, high


@triton.jit
def split_kernel(qkv_ptr, slots_ptr, depths_ptr, cos_ptr, sin_ptr, query_ptr, store_ptr, epsilon,
                 HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
                 NORMALIZES: tl.constexpr, TURNS: tl.constexpr):  # fmt: skip
    """One head of one node: its query to a row, its key and value to the node's slot.

    Args:
        qkv_ptr: (M, 3, HEADS, HEAD_DIM) float32. cos_ptr, sin_ptr: (depths, HEAD_DIM / 2).
    """
    node, head = tl.program_id(0), tl.program_id(1)
    DIM: tl.constexpr = HEADS * HEAD_DIM
    WIDTH: tl.constexpr = (HEAD_DIM + 1) // 2
    offset = tl.arange(0, BLOCK)
    is_low, is_high = offset < WIDTH, offset < HEAD_DIM - WIDTH
    slot = tl.load(slots_ptr + node).to(tl.int64)
    cos = tl.zeros((BLOCK,), tl.float32)
    sin = tl.zeros((BLOCK,), tl.float32)
    if TURNS:
        depth = tl.load(depths_ptr + node)
        cos = tl.load(cos_ptr + depth * WIDTH + offset, mask=is_low, other=0.0)
        sin = tl.load(sin_ptr + depth * WIDTH + offset, mask=is_low, other=0.0)
    at = node * 3 * DIM + head * HEAD_DIM
    low, high = load_halves(qkv_ptr, at, offset, is_low, is_high, WIDTH)
    low, high = place_head(low, high, epsilon, cos, sin, HEAD_DIM, NORMALIZES, TURNS)
    to = node * DIM + head * HEAD_DIM
    tl.store(query_ptr + to + offset, low, mask=is_low)
    tl.store(query_ptr + to + WIDTH + offset, high, mask=is_high)
    low, high = load_halves(qkv_ptr, at + DIM, offset, is_low, is_high, WIDTH)
    low, high = place_head(low, high, epsilon, cos, sin, HEAD_DIM, NORMALIZES, TURNS)
    kept = slot * 2 * DIM + head * HEAD_DIM
    tl.store(store_ptr + kept + offset, low, mask=is_low)
    tl.store(store_ptr + kept + WIDTH + offset, high, mask=is_high)
    low, high = load_halves(qkv_ptr, at + 2 * DIM, offset, is_low, is_high, WIDTH)
    tl.store(store_ptr + kept + DIM + offset, low, mask=is_low)
    tl.store(store_ptr + kept + DIM + WIDTH + offset, high, mask=is_high)


@triton.jit
def attend_kernel(query_ptr, store_ptr, paths_ptr, starts_ptr, depths_ptr, mixed_ptr, num_nodes,
                  factor, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
                  KEYS: tl.constexpr, NODES: tl.constexpr):  # fmt: skip
    """One head of NODES nodes, each by itself: they share most of their paths, so keys stay near.

    mixed = softmax(factor * query . keys of the path) . values of the path, KEYS at a time with a
    running maximum (Milakov and Gimelshein, 2018).
    """
    first, head = tl.program_id(0) * NODES, tl.program_id(1)
    DIM: tl.constexpr = HEADS * HEAD_DIM
    offset = tl.arange(0, BLOCK)
    is_column = offset < HEAD_DIM
    for node in range(first, tl.minimum(first + NODES, num_nodes)):
        at = node * DIM + head * HEAD_DIM
        query = tl.load(query_ptr + at + offset, mask=is_column, other=0.0)
        length = tl.load(depths_ptr + node) + 1
        start = tl.load(starts_ptr + node)
        highest = -float("inf")
        total = 0.0
        mixed = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, length, KEYS):
            ancestor = begin + tl.arange(0, KEYS)
            is_key = ancestor < length
            slot = tl.load(paths_ptr + start + ancestor, mask=is_key, other=0).to(tl.int64)
            key_ptr = store_ptr + (slot * 2 * DIM + head * HEAD_DIM)[:, None] + offset[None, :]
            is_number = is_key[:, None] & is_column[None, :]
            keys = tl.load(key_ptr, mask=is_number, other=0.0)
            scores = tl.sum(query[None, :] * keys, axis=1) * factor
            scores = tl.where(is_key, scores, -float("inf"))
            new_highest = tl.maximum(highest, tl.max(scores, axis=0))
            kept = tl.exp(highest - new_highest)
            weights = tl.exp(scores - new_highest)
            values = tl.load(key_ptr + DIM, mask=is_number, other=0.0)
            total = total * kept + tl.sum(weights, axis=0)
            mixed = mixed * kept + tl.sum(weights[:, None] * values, axis=0)
            highest = new_highest
        tl.store(mixed_ptr + at + offset, mixed / total, mask=is_column)
