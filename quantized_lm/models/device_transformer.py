"""A packed Transformer on a device: what `models/plan.py` says, kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantized_lm.models.device_block import Chunk, Recorded, Recorder
from quantized_lm.models.device_engine import (
    DeviceEngine,
    Ints,
    Matrices,
    Rows,
    grown,
    ints,
)
from quantized_lm.models.device_slots import ABOVE_ROOTS, SPARE
from quantized_lm.models.plan import BlockPlan, Floats, NormPlan, ProjectionPlan, TransformerPlan
from quantized_lm.ops.backend import Residency
from quantized_lm.ops.device_args import Codes, Epilogue, Heads, Mix, Nodes, Norm
from quantized_lm.ops.gpu import GpuBackend

# Room for paths of this length on average; longer ones make a chunk smaller.
_PATH_PER_NODE = 32
_FIELDS = 5  # of `Nodes`
_NOTHING: Ints = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Scratch:
    """What a pass needs besides the store; rows are nodes of the pass.

    Attributes:
        stream, first: (M, dim) residual stream and what it began with. qkv: (M, 3 dim). query,
            mixed: (M, dim). inner: (M, ffn_dim). partial: (2, M, chunks). paths: slots.
        codes, inner_codes: rounded rows.
    """

    stream: Tensor
    first: Tensor
    qkv: Tensor
    query: Tensor
    mixed: Tensor
    inner: Tensor
    partial: Tensor
    paths: Tensor
    codes: Codes
    inner_codes: Codes


class DeviceTransformer(DeviceEngine):
    """See `DeviceEngine`."""

    def __init__(
        self,
        plan: TransformerPlan,
        backend: GpuBackend,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(backend, _FIELDS, recorder)
        self._plan = plan
        packed = [plan.embedding]
        for block in plan.blocks:
            packed += [one.weight for one in (block.qkv, block.out, block.up, block.down)]
        self._matrices = Matrices.load(packed, backend, rereads=False)
        self._most_paths = max(_PATH_PER_NODE * self.most_nodes, plan.max_tokens + 1)
        self._mixes = any(block.mix != (1.0, 0.0) for block in plan.blocks)
        self._positions = self._moved(plan.positions)
        self._norms = {
            id(norm): self._norm(norm)
            for block in plan.blocks
            for norm in (block.attention_norm, block.ffn_norm)
        }
        self._final_norm = self._norm(plan.final_norm)
        self._biases = {
            id(one): self._moved(one.bias)
            for block in plan.blocks
            for one in (block.qkv, block.out, block.up, block.down)
        }
        self._heads = self._make_heads()
        self._scratch = self._make_scratch()
        dim, device = plan.model_dim, self.device
        self._store = torch.zeros((len(plan.blocks), 0, 2, dim), device=device)
        self._hidden = self._codes(0, dim)
        self._log_sum = torch.zeros(0, device=device)
        self._parent_of = ints(0, device=device)
        self._nodes = Recorded(self._run_nodes, recorder)

    @property
    def slot_bytes(self) -> int:
        """Keys and values of every layer, the rounded hidden row, three numbers."""
        dim = self._plan.model_dim
        return len(self._plan.blocks) * 2 * dim * 4 + dim + 12

    @property
    def residency(self) -> Residency:
        """How the weights lie."""
        return self._matrices.residency

    def resize(self, num_slots: int) -> None:
        """Have so many slots; what is kept stays."""
        self._nodes.forget()
        self.answers.forget()
        self._store = grown(self._store, num_slots, 1)
        self._hidden = Codes(
            grown(self._hidden.codes, num_slots, 0), grown(self._hidden.step, num_slots, 0)
        )
        self._log_sum = grown(self._log_sum, num_slots, 0)
        self._parent_of = grown(self._parent_of, num_slots, 0)

    def prepare(self) -> None:
        """Record all passes."""
        self._nodes.prepare(self.buckets)
        self.answers.prepare(self.question_buckets)

    def chunks(self, rows: Rows) -> Iterator[Chunk]:
        """Cut rows where a bucket or the room for paths is full."""
        padding = (0, 0, SPARE, ABOVE_ROOTS, self._most_paths)
        ends = np.cumsum(rows.depth + 1)
        first = 0
        while first < len(rows):
            before = int(ends[first - 1]) if first else 0
            full = int(np.searchsorted(ends, before + self._most_paths, side="right"))
            some = rows.some(slice(first, min(first + self.most_nodes, full)))
            start = np.cumsum(some.depth + 1) - some.depth - 1
            fields = (some.token, some.depth, some.slot, some.parent, start.astype(np.int32))
            yield Chunk(fields, padding, _NOTHING, _NOTHING)
            first += len(some)

    def run_chunk(self, chunk: Chunk, bucket: int) -> None:
        """Run a chunk that is in the block."""
        del chunk
        self._nodes(bucket)

    def answer(self, bucket: int) -> None:
        """Answer the questions that are in the block."""
        slots, tokens, log_prob = self.block.questions(bucket)
        weight = self._matrices.of(self._plan.embedding)
        self.kernels.answer(weight, self._hidden, self._log_sum, slots, tokens, log_prob)

    def _run_nodes(self, bucket: int) -> None:
        plan, scratch, kernels = self._plan, self._scratch, self.kernels
        nodes = Nodes(*self.block.nodes(bucket))
        kernels.trace(nodes, bucket, self._parent_of, scratch.paths)
        embedding = self._matrices.of(plan.embedding)
        kernels.embed(
            embedding,
            nodes,
            bucket,
            scratch.stream,
            positions=self._positions,
            epsilon=plan.norm_epsilon if plan.normalizes_embedding else None,
            first=scratch.first if self._mixes else None,
        )
        for layer, block in enumerate(plan.blocks):
            self._attend(layer, block, nodes, bucket)
            self._feed_forward(block, bucket)
        hidden = Codes(self._hidden.codes, self._hidden.step, nodes.slot)
        is_quads = embedding.layout.is_quads
        kernels.quantize(scratch.stream, bucket, hidden, is_quads=is_quads, norm=self._final_norm)
        kernels.log_sum_exp(embedding, hidden, bucket, scratch.partial, self._log_sum)

    def _attend(self, layer: int, block: BlockPlan, nodes: Nodes, num: int) -> None:
        scratch, kernels, heads = self._scratch, self.kernels, self._heads
        mix = None
        if block.mix != (1.0, 0.0):
            mix = Mix(scratch.first, *block.mix)
        self._round(scratch.stream, block.qkv, num, block.attention_norm, mix)
        self._multiply(block.qkv, num, scratch.qkv)
        kernels.split(scratch.qkv, nodes, num, heads, scratch.query, self._store[layer])
        store = self._store[layer]
        kernels.attend(scratch.query, store, nodes, num, heads, scratch.paths, scratch.mixed)
        self._round(scratch.mixed, block.out, num)
        self._multiply(block.out, num, scratch.stream, adds=True)

    def _feed_forward(self, block: BlockPlan, num: int) -> None:
        scratch = self._scratch
        self._round(scratch.stream, block.up, num, block.ffn_norm)
        self._multiply(block.up, num, scratch.inner, activation=self._plan.activation)
        self._round(scratch.inner, block.down, num)
        self._multiply(block.down, num, scratch.stream, adds=True)

    def _round(
        self,
        x: Tensor,
        to: ProjectionPlan,
        num: int,
        norm: NormPlan | None = None,
        mix: Mix | None = None,
    ) -> None:
        is_quads = self._matrices.of(to.weight).layout.is_quads
        own = None if norm is None else self._norms[id(norm)]
        self.kernels.quantize(x, num, self._codes_of(to), is_quads=is_quads, norm=own, mix=mix)

    def _multiply(
        self,
        by: ProjectionPlan,
        num: int,
        y: Tensor,
        *,
        activation: str | None = None,
        adds: bool = False,
    ) -> None:
        epilogue = Epilogue(self._biases[id(by)], activation, adds)
        weight = self._matrices.of(by.weight)
        self.kernels.matmul(weight, self._codes_of(by), num, y, epilogue)

    def _codes_of(self, projection: ProjectionPlan) -> Codes:
        is_wide = projection.weight.shape[1] == self._plan.ffn_dim
        return self._scratch.inner_codes if is_wide else self._scratch.codes

    def _codes(self, rows: int, columns: int) -> Codes:
        codes = torch.zeros((rows, columns), dtype=torch.int8, device=self.device)
        return Codes(codes, torch.zeros(rows, device=self.device))

    def _moved(self, numbers: Floats | None) -> Tensor | None:
        return None if numbers is None else torch.from_numpy(numbers).to(self.device).contiguous()

    def _norm(self, plan: NormPlan) -> Norm:
        kind = "layer" if plan.subtracts_mean else "rms"
        gain, bias = self._moved(plan.gain), self._moved(plan.bias)
        return Norm(kind, plan.epsilon, gain, bias)

    def _make_heads(self) -> Heads:
        plan = self._plan
        cos, sin = map(self._moved, plan.rotations())
        epsilon = plan.norm_epsilon if plan.normalizes_qk else None
        dim = plan.model_dim // plan.num_heads
        return Heads(plan.num_heads, dim, cos, sin, epsilon)

    def _make_scratch(self) -> Scratch:
        plan, most, device = self._plan, self.most_nodes, self.device

        def rows(width: int) -> Tensor:
            return torch.zeros((most, width), device=device)

        chunks = self.kernels.num_chunks(self._matrices.of(plan.embedding).layout)
        return Scratch(
            stream=rows(plan.model_dim),
            first=rows(plan.model_dim if self._mixes else 0),
            qkv=rows(3 * plan.model_dim),
            query=rows(plan.model_dim),
            mixed=rows(plan.model_dim),
            inner=rows(plan.ffn_dim),
            partial=torch.zeros((2, most, chunks), device=device),
            paths=ints(self._most_paths + 1, device=device),
            codes=self._codes(most, plan.model_dim),
            inner_codes=self._codes(most, plan.ffn_dim),
        )
