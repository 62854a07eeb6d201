"""What runs nodes of trees on a device, whatever the architecture: buckets, chunks, answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.models.device_block import Chunk, InputBlock, Recorded, Recorder
from quantized_lm.ops import PackedWeight
from quantized_lm.ops.backend import Residency
from quantized_lm.ops.device_layout import DeviceWeight
from quantized_lm.ops.gpu import GpuBackend, device_weight, resident
from quantized_lm.ops.tiles import bucket_of

Ints = NDArray[np.int32]
_QUESTIONS_PER_NODE = 2  # of a bucket: most nodes have one child or two
_NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Rows:
    """Nodes to be run, each after its parent if that is among them.

    Attributes:
        token, depth: (m,) int32. slot: where they are kept. parent: the slot above each.
    """

    token: Ints
    depth: Ints
    slot: Ints
    parent: Ints

    def some(self, which: slice | NDArray[np.int64]) -> Rows:
        """Some of them."""
        return Rows(self.token[which], self.depth[which], self.slot[which], self.parent[which])

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True, eq=False)
class Matrices:
    """A model's matrices as they lie on the device, looked up by what its plan holds.

    Attributes:
        residency: of most of them, for reports.
    """

    residency: Residency
    weights: dict[int, DeviceWeight]

    @classmethod
    def load(
        cls, packed: Sequence[PackedWeight], backend: GpuBackend, *, rereads: bool
    ) -> Matrices:
        """Let the backend decide how they lie.

        Args:
            rereads: whether they are read again for every level of a tree.
        """
        weights = [device_weight(weight) for weight in packed]
        residency = backend.reside(weights, rereads=rereads)
        laid = {
            id(weight): resident(one, residency)
            for weight, one in zip(packed, weights, strict=True)
        }
        return cls(residency, laid)

    def of(self, weight: PackedWeight) -> DeviceWeight:
        """One matrix."""
        return self.weights[id(weight)]

    @property
    def size_bytes(self) -> int:
        """Memory that they take."""
        return sum(weight.size_bytes for weight in self.weights.values())


class DeviceEngine(ABC):
    """One model on one device. For one thread.

    Args:
        num_fields: of a node in the input block.
        recorder: makes CUDA graphs; None where there are none.
    """

    # Nodes of a bucket that are needed for padding.
    reserved_nodes = 0

    def __init__(
        self,
        backend: GpuBackend,
        num_fields: int,
        recorder: Recorder | None = None,
    ) -> None:
        self.backend = backend
        self.kernels = backend.kernels
        self.device = backend.device
        self.buckets = backend.buckets
        self.recorder = recorder
        self.most_nodes = self.buckets[-1]  # that go in at once
        self.question_buckets = tuple(_QUESTIONS_PER_NODE * bucket for bucket in self.buckets)
        self.block = InputBlock(self.device, num_fields, self.most_nodes, self.question_buckets[-1])
        self.answers = Recorded(self.answer, recorder)
        self._again: Callable[[], None] = _do_nothing

    @property
    @abstractmethod
    def slot_bytes(self) -> int:
        """Memory of what a run node leaves behind."""

    @property
    @abstractmethod
    def residency(self) -> Residency:
        """How the weights lie."""

    @abstractmethod
    def resize(self, num_slots: int) -> None:
        """Have so many slots; what is kept stays."""

    @abstractmethod
    def prepare(self) -> None:
        """Record all passes; again after `resize`."""

    @abstractmethod
    def chunks(self, rows: Rows) -> Iterator[Chunk]:
        """Cut rows into what goes in at once, without questions."""

    @abstractmethod
    def run_chunk(self, chunk: Chunk, bucket: int) -> None:
        """Run a chunk that is in the block."""

    @abstractmethod
    def answer(self, bucket: int) -> None:
        """Answer the questions that are in the block."""

    def run(self, rows: Rows, slots: Ints, tokens: Ints) -> NDArray[np.float32]:
        """Run rows, then compute log P(tokens[c] | path to the node in slots[c]): (c,)."""
        log_prob = np.empty(len(tokens), np.float32)
        most = self.question_buckets[-1]
        firsts = list(range(0, len(tokens), most)) or [0]
        no_nodes = Chunk((), (), _NOTHING, _NOTHING)
        *before, last = list(self.chunks(rows)) or [no_nodes]
        for chunk in before:
            self._pass(chunk)
        for first in firsts:
            part = slice(first, first + most)
            self._pass(replace(last, slots=slots[part], tokens=tokens[part]))
            log_prob[part] = self.block.answers(len(tokens[part]))
            last = no_nodes
        return log_prob

    def _pass(self, chunk: Chunk) -> None:
        nodes = chunk.num_nodes
        bucket = bucket_of(nodes + self.reserved_nodes, self.buckets) if nodes else 0
        questions = len(chunk.tokens)
        asked = bucket_of(questions, self.question_buckets) if questions else 0
        self.block.fill(chunk, bucket, asked)
        self._again = partial(self._run_filled, chunk, bucket, asked)
        self._again()

    def repeat(self) -> None:
        """Start on the device once more what went in last, for whoever times it."""
        self._again()

    def _run_filled(self, chunk: Chunk, bucket: int, asked: int) -> None:
        if bucket:
            self.run_chunk(chunk, bucket)
        if asked:
            self.answers(asked)


def _do_nothing() -> None:
    """Nothing went in yet."""


def ints(*shape: int, device: torch.device) -> Tensor:
    """Zeros, int32."""
    return torch.zeros(shape, dtype=torch.int32, device=device)


def grown(kept: Tensor, num_slots: int, dim: int) -> Tensor:
    """A larger tensor of zeros that begins with what was kept, along one dimension."""
    shape = list(kept.shape)
    shape[dim] = num_slots
    more = kept.new_zeros(shape)
    more.narrow(dim, 0, kept.shape[dim]).copy_(kept)
    return more
