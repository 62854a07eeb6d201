"""A packed LSTM on a device: a layer's input is multiplied for all nodes, then level by level.

What a node leaves behind is, for each layer, its cell state and its rounded hidden state: the next
level's recurrent product reads that by the slot of the parent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from quantized_lm.models.device_block import Chunk, PinnedInts, Recorded, Recorder
from quantized_lm.models.device_engine import (
    DeviceEngine,
    Ints,
    Matrices,
    Rows,
    grown,
    ints,
)
from quantized_lm.models.device_slots import ABOVE_ROOTS, SPARE
from quantized_lm.models.plan import LstmPlan, ProjectionPlan
from quantized_lm.ops.backend import Residency
from quantized_lm.ops.device_args import Codes, Epilogue, Level, Nodes
from quantized_lm.ops.device_layout import DeviceWeight, is_alike, stack
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.ops.tiles import bucket_of

_FIELDS = 3  # token, slot, parent
_GATES = 4
# The smallest bucket of a level is 1, the next 16: in the worst case 2 nodes take 16.
_LEVEL_ROOM = 8
_LEVEL_FIELDS = 3
_NOTHING: Ints = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class GateProduct:
    """Some gates whose matrices are multiplied as one.

    Attributes:
        first: column of the gates' sums at which theirs begin.
        bias: (N,) float32 or None.
    """

    weight: DeviceWeight
    first: int
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class LayerState:
    """What the slots hold of one layer.

    Attributes:
        cell: (slots, dim) float32. hidden: rounded by each rule that a product asks for.
    """

    cell: Tensor
    hidden: dict[bool, Codes]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's products."""

    input: tuple[GateProduct, ...]
    recurrent: tuple[GateProduct, ...]


@dataclass(frozen=True, eq=False)
class Scratch:
    """What a pass needs besides the states of the slots; rows are nodes of the pass.

    Attributes:
        x: (M, dim) what goes into a layer, then what comes out of it. x_codes: rounded by rule.
        below, past: (M, 4 dim) sums of the gates: of the input, and of one level's parents.
        partial: (2, M, chunks). levels: rows and slots of all levels.
        level: those of the level that is run.
    """

    x: Tensor
    x_codes: dict[bool, Codes]
    below: Tensor
    past: Tensor
    partial: Tensor
    levels: PinnedInts
    level: Tensor


@dataclass(frozen=True, eq=False)
class LevelChunk(Chunk):
    """A chunk whose nodes are sorted by depth.

    Attributes:
        depth: (m,) int32.
    """

    depth: Ints


class DeviceLstm(DeviceEngine):
    """See `DeviceEngine`."""

    reserved_nodes = 1  # levels are padded with a row that is padding itself

    def __init__(
        self,
        plan: LstmPlan,
        backend: GpuBackend,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(backend, _FIELDS, recorder)
        packed = [plan.embedding]
        packed += [one.weight for layer in plan.layers for one in (*layer.input, *layer.recurrent)]
        matrices = Matrices.load(packed, backend, rereads=True)
        self._residency = matrices.residency
        self._dim = plan.model_dim
        self._embedding = matrices.of(plan.embedding)
        self._layers = tuple(
            Layer(self._products(layer.input, matrices), self._products(layer.recurrent, matrices))
            for layer in plan.layers
        )
        self._scratch = self._make_scratch()
        self._states = tuple(
            LayerState(
                torch.zeros((0, self._dim), device=self.device),
                {rule: self._codes(0) for rule in _rules(layer.recurrent)},
            )
            for layer in self._layers
        )
        self._hidden = self._codes(0)
        self._log_sum = torch.zeros(0, device=self.device)
        layers = range(len(plan.layers))
        self._inputs = [Recorded(partial(self._run_input, one), recorder) for one in layers]
        self._outputs = Recorded(self._run_output, recorder)
        self._steps = [Recorded(partial(self._run_level, one), recorder) for one in layers]

    @property
    def slot_bytes(self) -> int:
        """Cell and rounded hidden state of every layer, the rounded last row, a log-sum."""
        per_layer = sum(
            4 * self._dim + len(state.hidden) * (self._dim + 4) for state in self._states
        )
        return per_layer + self._dim + 8

    @property
    def residency(self) -> Residency:
        """How the weights lie."""
        return self._residency

    def resize(self, num_slots: int) -> None:
        """Have so many slots; what is kept stays."""
        for recorded in (*self._inputs, *self._steps, self._outputs, self.answers):
            recorded.forget()
        self._states = tuple(
            LayerState(
                grown(state.cell, num_slots, 0),
                {rule: _grown_codes(codes, num_slots) for rule, codes in state.hidden.items()},
            )
            for state in self._states
        )
        self._hidden = _grown_codes(self._hidden, num_slots)
        self._log_sum = grown(self._log_sum, num_slots, 0)

    def prepare(self) -> None:
        """Record all passes."""
        for recorded in (*self._inputs, *self._steps, self._outputs):
            recorded.prepare(self.buckets)
        self.answers.prepare(self.question_buckets)

    def chunks(self, rows: Rows) -> Iterator[Chunk]:
        """Rows by depth, so that levels stand together and parents come first."""
        order = np.argsort(rows.depth, kind="stable")
        most = self.most_nodes - self.reserved_nodes
        padding = (0, SPARE, ABOVE_ROOTS)
        for first in range(0, len(rows), most):
            some = rows.some(order[first : first + most])
            fields = (some.token, some.slot, some.parent)
            yield LevelChunk(fields, padding, _NOTHING, _NOTHING, depth=some.depth)

    def run_chunk(self, chunk: Chunk, bucket: int) -> None:
        """Run a chunk that is in the block."""
        assert isinstance(chunk, LevelChunk)
        scratch = self._scratch
        widths = self._fill_levels(chunk)
        for layer, step in enumerate(self._steps):
            self._inputs[layer](bucket)
            first = 0
            for width in widths:
                size = _LEVEL_FIELDS * width
                scratch.level[:size].copy_(scratch.levels.device[first : first + size])
                step(width)
                first += size
        self._outputs(bucket)

    def answer(self, bucket: int) -> None:
        """Answer the questions that are in the block."""
        slots, tokens, log_prob = self.block.questions(bucket)
        self.kernels.answer(self._embedding, self._hidden, self._log_sum, slots, tokens, log_prob)

    def _fill_levels(self, chunk: LevelChunk) -> list[int]:
        """Copy each level's rows and slots to the device; their padded widths."""
        scratch, count = self._scratch, chunk.num_nodes
        _, slot, parent = chunk.fields
        row = np.arange(count, dtype=np.int32)
        padding = (count, SPARE, ABOVE_ROOTS)  # the row is one of padding
        filled, end = scratch.levels.open(), 0
        widths: list[int] = []
        starts = [0, *(np.flatnonzero(np.diff(chunk.depth)) + 1).tolist(), count]
        for first, last in itertools.pairwise(starts):
            width = bucket_of(last - first, self.buckets)
            for values, filler in zip((row, slot, parent), padding, strict=True):
                filled[end : end + last - first] = values[first:last]
                filled[end + last - first : end + width] = filler
                end += width
            widths.append(width)
        scratch.levels.send(0, end)
        return widths

    def _run_input(self, layer: int, bucket: int) -> None:
        scratch, nodes = self._scratch, self._nodes(bucket)
        if layer == 0:
            self.kernels.embed(self._embedding, nodes.token, bucket, scratch.x)
        products = self._layers[layer].input
        for is_quads in _rules(products):
            codes = scratch.x_codes[is_quads]
            self.kernels.quantize(scratch.x, bucket, codes, is_quads=is_quads)
        self._multiply(products, scratch.x_codes, bucket, scratch.below)

    def _run_level(self, layer: int, width: int) -> None:
        scratch, state = self._scratch, self._states[layer]
        level = Level(*scratch.level[: _LEVEL_FIELDS * width].view(_LEVEL_FIELDS, -1).unbind())
        parents = {
            rule: Codes(codes.codes, codes.step, level.above)
            for rule, codes in state.hidden.items()
        }
        self._multiply(self._layers[layer].recurrent, parents, width, scratch.past)
        first, *others = state.hidden
        gates, codes = (scratch.below, scratch.past), state.hidden[first]
        # The layer's input has been multiplied, so its rows may take the new hidden states.
        self.kernels.cell(gates, level, scratch.x, state.cell, codes, is_quads=first)
        for rule in others:
            target = Codes(state.hidden[rule].codes, state.hidden[rule].step, level.slot)
            self.kernels.quantize(scratch.x, width, target, is_quads=rule, members=level.member)

    def _run_output(self, bucket: int) -> None:
        nodes = self._nodes(bucket)
        hidden = Codes(self._hidden.codes, self._hidden.step, nodes.slot)
        is_quads = self._embedding.layout.is_quads
        self.kernels.quantize(self._scratch.x, bucket, hidden, is_quads=is_quads)
        partial_sums = self._scratch.partial
        self.kernels.log_sum_exp(self._embedding, hidden, bucket, partial_sums, self._log_sum)

    def _multiply(
        self,
        products: Sequence[GateProduct],
        codes: Mapping[bool, Codes],
        num: int,
        sums: Tensor,
    ) -> None:
        for product in products:
            weight = product.weight
            part = sums[:, product.first : product.first + weight.layout.num_rows]
            rounded = codes[weight.layout.is_quads]
            self.kernels.matmul(weight, rounded, num, part, Epilogue(product.bias))

    def _nodes(self, bucket: int) -> Nodes:
        token, slot, parent = self.block.nodes(bucket)
        return Nodes(token, token, slot, parent, token)

    def _products(
        self, gates: Sequence[ProjectionPlan], matrices: Matrices
    ) -> tuple[GateProduct, ...]:
        """Neighboring gates that are laid out alike become one product."""
        runs: list[list[ProjectionPlan]] = []
        for gate in gates:
            if runs and is_alike(matrices.of(runs[-1][0].weight), matrices.of(gate.weight)):
                runs[-1].append(gate)
            else:
                runs.append([gate])
        products, first = [], 0
        for run in runs:
            weight = stack([matrices.of(gate.weight) for gate in run])
            products.append(GateProduct(weight, first, self._bias(run)))
            first += weight.layout.num_rows
        return tuple(products)

    def _bias(self, gates: Sequence[ProjectionPlan]) -> Tensor | None:
        if all(gate.bias is None for gate in gates):
            return None
        zeros = np.zeros(self._dim, np.float32)
        biases = [zeros if gate.bias is None else gate.bias for gate in gates]
        return torch.from_numpy(np.concatenate(biases)).to(self.device)

    def _codes(self, rows: int) -> Codes:
        codes = torch.zeros((rows, self._dim), dtype=torch.int8, device=self.device)
        return Codes(codes, torch.zeros(rows, device=self.device))

    def _make_scratch(self) -> Scratch:
        most, device, room = (
            self.most_nodes,
            self.device,
            _LEVEL_FIELDS * _LEVEL_ROOM * self.most_nodes,
        )
        return Scratch(
            x=torch.zeros((most, self._dim), device=device),
            x_codes={is_quads: self._codes(most) for is_quads in (False, True)},
            below=torch.zeros((most, _GATES * self._dim), device=device),
            past=torch.zeros((most, _GATES * self._dim), device=device),
            partial=torch.zeros(
                (2, most, self.kernels.num_chunks(self._embedding.layout)), device=device
            ),
            levels=PinnedInts(device, room),
            level=ints(_LEVEL_FIELDS * most, device=device),
        )


def _rules(products: Sequence[GateProduct]) -> list[bool]:
    """How what they are multiplied with has to be rounded: whether by quads, each rule once."""
    return list(dict.fromkeys(product.weight.layout.is_quads for product in products))


def _grown_codes(codes: Codes, num_slots: int) -> Codes:
    return Codes(grown(codes.codes, num_slots, 0), grown(codes.step, num_slots, 0))
