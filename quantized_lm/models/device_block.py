"""What one forward pass on a device is told and what it answers: one copy there, one copy back.

The block holds the nodes to run, then the questions. It is filled from the middle: where the
nodes' part begins depends on their bucket alone, where the questions' part begins is fixed, and
all that was filled is contiguous. So a recorded pass reads the same addresses each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int32]
# Makes something replayable of a call.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Nodes and questions that go in at once.

    Attributes:
        fields: of the nodes, in the order in which the engine wants them, each (m,) int32.
        padding: what each field of a node holds that only fills a bucket.
        slots, tokens: (c,) int32, of the questions.
    """

    fields: tuple[Ints, ...]
    padding: tuple[int, ...]
    slots: Ints
    tokens: Ints

    @property
    def num_nodes(self) -> int:
        """Nodes to run."""
        return len(self.fields[0]) if self.fields else 0


class PinnedInts:
    """Memory of the host that a device copies from while the host goes on, and its twin there.

    Attributes:
        device: (size,) int32, the twin.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        is_cuda = device.type == "cuda"
        self.device = torch.zeros(size, dtype=torch.int32, device=device)
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=is_cuda)
        self._copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def open(self) -> Ints:
        """The host's memory, once what was sent last has been read."""
        if self._copied is not None:
            self._copied.synchronize()
        filled: Ints = self._host.numpy()
        return filled

    def send(self, first: int, end: int) -> None:
        """Start the copy of a part."""
        self.device[first:end].copy_(self._host[first:end], non_blocking=True)
        if self._copied is not None:
            self._copied.record()


class InputBlock:
    """What goes to the device, and the answers that come back.

    Args:
        num_fields: of a node. most_nodes, most_questions: buckets.
    """

    def __init__(
        self, device: torch.device, num_fields: int, most_nodes: int, most_questions: int
    ) -> None:
        self._num_fields = num_fields
        self._middle = num_fields * most_nodes
        size = self._middle + 2 * most_questions
        is_cuda = device.type == "cuda"
        self._block = PinnedInts(device, size)
        self._answers = torch.zeros(most_questions, device=device)
        self._host_answers = torch.zeros(most_questions, pin_memory=is_cuda)

    def fill(self, chunk: Chunk, node_bucket: int, question_bucket: int) -> None:
        """Copy a chunk to the device, padded to its buckets; buckets may be 0."""
        filled = self._block.open()
        first = self._middle - self._num_fields * node_bucket
        for index, (field, padding) in enumerate(zip(chunk.fields, chunk.padding, strict=True)):
            at = first + index * node_bucket
            filled[at : at + len(field)] = field
            filled[at + len(field) : at + node_bucket] = padding
        for index, part in enumerate((chunk.slots, chunk.tokens)):
            at = self._middle + index * question_bucket
            filled[at : at + len(part)] = part
            filled[at + len(part) : at + question_bucket] = 0
        end = self._middle + 2 * question_bucket
        self._block.send(first, end)

    def nodes(self, bucket: int) -> tuple[Tensor, ...]:
        """The fields on the device, each (bucket,) int32."""
        first = self._middle - self._num_fields * bucket
        return self._block.device[first : self._middle].view(self._num_fields, -1).unbind()

    def questions(self, bucket: int) -> tuple[Tensor, Tensor, Tensor]:
        """Slots and tokens on the device and where the answers go, each (bucket,)."""
        part = self._block.device[self._middle : self._middle + 2 * bucket].view(2, -1)
        return part[0], part[1], self._answers[:bucket]

    def answers(self, count: int) -> NDArray[np.float32]:
        """The answers, once all that was started is done; valid until the next pass."""
        self._host_answers[:count].copy_(self._answers[:count], non_blocking=True)
        if self._answers.is_cuda:
            torch.cuda.current_stream(self._answers.device).synchronize()
        return self._host_answers[:count].numpy()


class Recorded:
    """A function of a bucket that is run as a CUDA graph where there is a GPU, else called.

    Args:
        run: does everything on the device at fixed addresses; a function of the bucket alone.
        record: makes a replayable of a call; None where nothing can be recorded.
    """

    def __init__(
        self,
        run: Callable[[int], None],
        record: Recorder | None,
    ) -> None:
        self._run = run
        self._record = record
        self._replays: dict[int, Callable[[], None]] = {}

    def prepare(self, buckets: tuple[int, ...]) -> None:
        """Record buckets, the largest first, whose memory the others then share."""
        if self._record is None:
            return
        for bucket in sorted(buckets, reverse=True):
            self._replays[bucket] = self._record(partial(self._run, bucket))

    def forget(self) -> None:
        """Drop what was recorded: addresses have changed."""
        self._replays.clear()

    def __call__(self, bucket: int) -> None:
        """Run a bucket."""
        replay = self._replays.get(bucket)
        if replay is None:
            self._run(bucket)
        else:
            replay()

    @property
    def replays(self) -> Mapping[int, Callable[[], None]]:
        """What was recorded, by bucket."""
        return self._replays


def graph_recorder(device: torch.device) -> Recorder:
    """Records CUDA graphs that share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(call: Callable[[], None]) -> Callable[[], None]:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            call()  # compiles kernels, which must not happen while a graph is recorded
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on: a model may be loaded while another one serves.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            call()
        return graph.replay

    return record
