"""The kernels as functions of torch's tensors on one device. Allocates nothing, checks nothing.

`num` arguments are how many rows are computed; tensors may have more. Under Triton's interpreter
the same calls work on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import triton
from torch import Tensor

from quantized_lm.ops.device_args import Codes, Epilogue, Heads, Level, Mix, Nodes, Norm
from quantized_lm.ops.device_layout import DeviceLayout, DeviceWeight
from quantized_lm.ops.tiles import Tile, TileKey, TileTable
from quantized_lm.ops.triton.attention import (
    attend_kernel,
    link_kernel,
    split_kernel,
    trace_kernel,
)
from quantized_lm.ops.triton.cell import cell_kernel
from quantized_lm.ops.triton.embedding import embed_kernel
from quantized_lm.ops.triton.matmul import GELU_TANH, NO_ACTIVATION, SQUARED_RELU, matmul_kernel
from quantized_lm.ops.triton.output import answer_kernel, chunk_kernel, combine_kernel
from quantized_lm.ops.triton.quantize import LAYER_NORM, NO_NORM, RMS_NORM, quantize_kernel

ACTIVATIONS: Mapping[str | None, Any] = MappingProxyType(
    {None: NO_ACTIVATION, "squared_relu": SQUARED_RELU, "gelu_tanh": GELU_TANH}
)
NORMS: Mapping[str | None, Any] = MappingProxyType(
    {None: NO_NORM, "rms": RMS_NORM, "layer": LAYER_NORM}
)
_LINKED_NODES = 128  # of one program
_TRACED_NODES = 32
_KEYS = 32  # of one step of attention
_ATTENDED_NODES = 8
_QUESTIONS = 4
# A product and the sum after it must not become one operation, or numbers would not be the
# reference's.
_EXACT: Mapping[str, Any] = MappingProxyType({"enable_fp_fusion": False})


class Kernels:
    """The kernels with the tiles of one GPU.

    Args:
        tiles: measured ones.
        is_plain: whether codes are decoded by plain Triton, as the interpreter needs.
    """

    def __init__(self, tiles: TileTable, *, is_plain: bool) -> None:
        self.tiles = tiles
        self.is_plain = is_plain

    def embed(
        self,
        weight: DeviceWeight,
        nodes: Nodes | Tensor,
        num: int,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        epsilon: float | None = None,
        first: Tensor | None = None,
    ) -> None:
        """x = rows of the tokens; `epsilon` is of their norm, where there is one.

        Args:
            nodes: (num,) int32 tokens alone where there are no positions.
        """
        token = nodes if isinstance(nodes, Tensor) else nodes.token
        depth = token if isinstance(nodes, Tensor) else nodes.depth
        embed_kernel[(num,)](
            *_parts(weight), token, depth, x if positions is None else positions, x,
            x if first is None else first, epsilon or 0.0,
            **_columns(weight.layout), BLOCK=_power(weight.layout.num_columns),
            NORMALIZES=epsilon is not None, HAS_POSITIONS=positions is not None,
            KEEPS=first is not None,
        )  # fmt: skip

    def quantize(
        self,
        x: Tensor,
        num: int,
        out: Codes,
        *,
        is_quads: bool,
        norm: Norm | None = None,
        mix: Mix | None = None,
        members: Tensor | None = None,
    ) -> None:
        """Round rows of x, the members or the first; with `out.nodes` the m-th goes to nodes[m]."""
        norm = norm or Norm()
        dim = x.shape[1]
        block = max(_power(dim), 4)
        quantize_kernel[(num,)](
            x, x if mix is None else mix.first, x if norm.gain is None else norm.gain,
            x if norm.bias is None else norm.bias, x if members is None else members,
            x if out.nodes is None else out.nodes, out.codes, out.step,
            0.0 if mix is None else mix.stream, 0.0 if mix is None else mix.embedding,
            norm.epsilon,
            DIM=dim, BLOCK=block, MIXES=mix is not None, NORM=NORMS[norm.kind],
            HAS_GAIN=norm.gain is not None, HAS_BIAS=norm.bias is not None,
            HAS_MEMBERS=members is not None, HAS_ROWS=out.nodes is not None, QUADS=is_quads,
            num_warps=_warps(block), **_EXACT,
        )  # fmt: skip

    def matmul(
        self,
        weight: DeviceWeight,
        x: Codes,
        num: int,
        y: Tensor,
        epilogue: Epilogue | None = None,
        tile: Tile | None = None,
    ) -> None:
        """y (num, N) = the product, then the epilogue; rows of y may be further apart."""
        layout, epilogue = weight.layout, epilogue or Epilogue()
        tile = tile or self.tiles.choose(_key("matmul", layout, num))
        grid = (triton.cdiv(layout.num_rows, tile.rows), triton.cdiv(num, tile.nodes))
        matmul_kernel[grid](
            *_parts(weight), x.codes, x.step, x.step if x.nodes is None else x.nodes,
            x.step if epilogue.bias is None else epilogue.bias, y, num,
            N=layout.num_rows, **_columns(layout), HAS_NODES=x.nodes is not None,
            HAS_BIAS=epilogue.bias is not None, ACTIVATION=ACTIVATIONS[epilogue.activation],
            ADDS=epilogue.adds, STRIDE=y.stride(0), ROWS=tile.rows, NODES=tile.nodes,
            PLAIN=self.is_plain, TABLES=weight.tables, num_warps=tile.warps,
            num_stages=tile.stages, **_EXACT,
        )  # fmt: skip

    def trace(self, nodes: Nodes, num: int, parent_of: Tensor, paths: Tensor) -> None:
        """Keep each node's parent, then write the slots of their paths."""
        link_kernel[(triton.cdiv(num, _LINKED_NODES),)](
            nodes.slot, nodes.parent, parent_of, num, BLOCK=_LINKED_NODES
        )
        trace_kernel[(triton.cdiv(num, _TRACED_NODES),)](
            nodes.slot, nodes.depth, nodes.start, parent_of, paths, num,
            BLOCK=_TRACED_NODES, num_warps=1,
        )  # fmt: skip

    def split(
        self, qkv: Tensor, nodes: Nodes, num: int, heads: Heads, query: Tensor, store: Tensor
    ) -> None:
        """Queries to rows, keys and values to the slots of one layer's store."""
        turns = heads.cos is not None and heads.sin is not None
        split_kernel[(num, heads.count)](
            qkv, nodes.slot, nodes.depth, heads.cos if turns else qkv,
            heads.sin if turns else qkv, query, store, heads.epsilon or 0.0,
            HEADS=heads.count, HEAD_DIM=heads.dim, BLOCK=_power((heads.dim + 1) // 2),
            NORMALIZES=heads.epsilon is not None, TURNS=turns, num_warps=1,
        )  # fmt: skip

    def attend(
        self,
        query: Tensor,
        store: Tensor,
        nodes: Nodes,
        num: int,
        heads: Heads,
        paths: Tensor,
        mixed: Tensor,
    ) -> None:
        """Attention over the traced paths."""
        attend_kernel[(triton.cdiv(num, _ATTENDED_NODES), heads.count)](
            query, store, paths, nodes.start, nodes.depth, mixed, num, heads.dim**-0.5,
            HEADS=heads.count, HEAD_DIM=heads.dim, BLOCK=_power(heads.dim), KEYS=_KEYS,
            NODES=_ATTENDED_NODES, num_warps=4,
        )  # fmt: skip

    def log_sum_exp(
        self, weight: DeviceWeight, hidden: Codes, num: int, partial: Tensor, log_sum: Tensor
    ) -> None:
        """log_sum[hidden.nodes[m]] over the whole vocabulary, m < num.

        Args:
            partial: (2, M, chunks) float32, written; see `num_chunks`.
        """
        layout = weight.layout
        tile = self.tiles.choose(_key("output", layout, 0))
        chunks = triton.cdiv(layout.num_rows, tile.rows)
        chunk_kernel[(chunks, triton.cdiv(num, tile.nodes))](
            *_parts(weight), hidden.codes, hidden.step, hidden.nodes, partial[0], partial[1], num,
            N=layout.num_rows, **_columns(layout), ROWS=tile.rows, NODES=tile.nodes, CHUNKS=chunks,
            PLAIN=self.is_plain, TABLES=weight.tables, num_warps=tile.warps,
            num_stages=tile.stages, **_EXACT,
        )  # fmt: skip
        combine_kernel[(num,)](
            partial[0], partial[1], hidden.nodes, log_sum, CHUNKS=chunks, BLOCK=_power(chunks)
        )

    def num_chunks(self, layout: DeviceLayout) -> int:
        """Partial results of one node."""
        rows = self.tiles.choose(_key("output", layout, 0)).rows
        return -(-layout.num_rows // rows)

    def answer(
        self,
        weight: DeviceWeight,
        hidden: Codes,
        log_sum: Tensor,
        slots: Tensor,
        tokens: Tensor,
        log_prob: Tensor,
    ) -> None:
        """log_prob[c] of token tokens[c] after what is kept in slots[c], for every c."""
        layout, num = weight.layout, len(slots)
        answer_kernel[(triton.cdiv(num, _QUESTIONS),)](
            *_parts(weight), hidden.codes, hidden.step, log_sum, slots, tokens, log_prob, num,
            **_columns(layout), BLOCK=_power(layout.group_size), QUESTIONS=_QUESTIONS, **_EXACT,
        )  # fmt: skip

    def cell(
        self,
        gates: tuple[Tensor, Tensor],
        level: Level,
        hidden: Tensor,
        cell: Tensor,
        out: Codes,
        *,
        is_quads: bool,
    ) -> None:
        """New states of one level of one layer; see `cell_kernel`.

        Args:
            gates: input's of all rows, recurrent of the members.
        """
        dim = hidden.shape[1]
        block = max(_power(dim), 4)
        cell_kernel[(len(level.member),)](
            *gates, level.member, level.slot, level.above, hidden, cell, out.codes, out.step,
            DIM=dim, BLOCK=block, QUADS=is_quads, num_warps=_warps(block),
        )  # fmt: skip


def _parts(weight: DeviceWeight) -> tuple[Tensor, Tensor, Tensor]:
    return weight.words, weight.scale, weight.levels


def _columns(layout: DeviceLayout) -> dict[str, int]:
    """What every kernel knows of a weight when it is made."""
    return {
        "COLUMNS": layout.num_columns,
        "GROUP_SIZE": layout.group_size,
        "GROUPS": layout.num_groups,
        "ROW_BYTES": layout.row_bytes,
        "BITS": layout.bits,
        "TILE": layout.tile,
        "BLOCKS": layout.blocks_per_group,
    }


def _key(kernel: str, layout: DeviceLayout, num: int) -> TileKey:
    return TileKey(kernel, layout.bits, num, layout.num_rows, layout.num_columns)


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _warps(block: int) -> int:
    """Of a program that holds one row: 8 numbers of it in each lane, 1 to 8 warps."""
    return min(max(block // 256, 1), 8)
