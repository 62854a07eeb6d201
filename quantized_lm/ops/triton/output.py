"""The output layer: log-sum-exp over the vocabulary by chunks, and the logits that are asked for.

Logits are never stored. Partial results of the chunks are reduced in a fixed order, and the tile
does not depend on the number of nodes, so a node's sum is the same in any batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantized_lm.ops.triton.decode import decode_columns
from quantized_lm.ops.triton.matmul import multiply


@triton.jit
def chunk_kernel(words_ptr, scale_ptr, levels_ptr, codes_ptr, step_ptr, nodes_ptr, highest_ptr,
                 total_ptr, num_nodes, N: tl.constexpr, COLUMNS: tl.constexpr,
                 GROUP_SIZE: tl.constexpr, GROUPS: tl.constexpr, ROW_BYTES: tl.constexpr,
                 BITS: tl.constexpr, TILE: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
                 NODES: tl.constexpr, CHUNKS: tl.constexpr, PLAIN: tl.constexpr,
                 TABLES: tl.constexpr):  # fmt: skip
    """Of ROWS words of the vocabulary: the highest logit, and the sum of exp(logit - highest).

    Args:
        nodes_ptr: (num_nodes,) int32, which row of codes and step each node has.
        highest_ptr, total_ptr: (num_nodes, CHUNKS) float32.
    """
    chunk = tl.program_id(0)
    row = chunk * ROWS + tl.arange(0, ROWS)
    node = tl.program_id(1) * NODES + tl.arange(0, NODES)
    source = tl.load(nodes_ptr + tl.minimum(node, num_nodes - 1))
    logit = multiply(words_ptr, scale_ptr, levels_ptr, codes_ptr, tl.minimum(row, N - 1), source,
                     COLUMNS, GROUP_SIZE, GROUPS, ROW_BYTES, BITS, TILE, BLOCKS, ROWS, NODES, PLAIN,
                     TABLES)  # fmt: skip
    logit = logit * tl.load(step_ptr + source)[None, :]
    is_word = (row < N)[:, None]
    highest = tl.max(tl.where(is_word, logit, -float("inf")), axis=0)
    total = tl.sum(tl.where(is_word, tl.exp(logit - highest[None, :]), 0.0), axis=0)
    is_node = node < num_nodes
    tl.store(highest_ptr + node * CHUNKS + chunk, highest, mask=is_node)
    tl.store(total_ptr + node * CHUNKS + chunk, total, mask=is_node)


@triton.jit
def combine_kernel(highest_ptr, total_ptr, nodes_ptr, log_sum_ptr, CHUNKS: tl.constexpr,
                   BLOCK: tl.constexpr):  # fmt: skip
    """log_sum[nodes[m]] = log of the sum of all chunks of node m."""
    node = tl.program_id(0)
    chunk = tl.arange(0, BLOCK)
    is_chunk = chunk < CHUNKS
    highest = tl.load(highest_ptr + node * CHUNKS + chunk, mask=is_chunk, other=-float("inf"))
    total = tl.load(total_ptr + node * CHUNKS + chunk, mask=is_chunk, other=0.0)
    most = tl.max(highest, axis=0)
    # What is no number in one chunk is none in the sum.
    log_sum = most + tl.log(tl.sum(total * tl.exp(highest - most), axis=0))
    tl.store(log_sum_ptr + tl.load(nodes_ptr + node), log_sum)


@triton.jit
def answer_kernel(words_ptr, scale_ptr, levels_ptr, codes_ptr, step_ptr, log_sum_ptr, slots_ptr,
                  tokens_ptr, log_prob_ptr, num_questions, COLUMNS: tl.constexpr,
                  GROUP_SIZE: tl.constexpr, GROUPS: tl.constexpr, ROW_BYTES: tl.constexpr,
                  BITS: tl.constexpr, TILE: tl.constexpr, BLOCKS: tl.constexpr,
                  BLOCK: tl.constexpr, QUESTIONS: tl.constexpr):  # fmt: skip
    """log_prob[c] = logit of token tokens[c] after the node in slots[c], minus that node's log_sum.

    The dot is exact, so it is the very logit that `chunk_kernel` had.
    """
    question = tl.program_id(0) * QUESTIONS + tl.arange(0, QUESTIONS)
    is_question = question < num_questions
    slot = tl.load(slots_ptr + question, mask=is_question, other=0)
    token = tl.load(tokens_ptr + question, mask=is_question, other=0)
    within = tl.arange(0, BLOCK)
    logit = tl.zeros((QUESTIONS,), tl.float32)
    for group in range(GROUPS):
        column = group * GROUP_SIZE + within
        is_column = ((within < GROUP_SIZE) & (column < COLUMNS))[None, :]
        stored = (group * (8 // BITS * TILE * BLOCKS) + within)[None, :]
        level = decode_columns(words_ptr, levels_ptr, token[:, None], stored, is_column, ROW_BYTES,
                               TILE, BITS)  # fmt: skip
        at = slot[:, None] * COLUMNS + column[None, :]
        code = tl.load(codes_ptr + at, mask=is_column, other=0)
        dot = tl.sum(level.to(tl.int32) * code.to(tl.int32), axis=1)
        logit = logit + dot.to(tl.float32) * tl.load(scale_ptr + token * GROUPS + group)
    logit = logit * tl.load(step_ptr + slot)
    log_prob = logit - tl.load(log_sum_ptr + slot)
    tl.store(log_prob_ptr + question, log_prob, mask=is_question)
