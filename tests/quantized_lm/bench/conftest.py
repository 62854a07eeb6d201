"""What the tests of the benchmark share: a tiny GPT-2 on disk and a process that is none."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from quantized_lm.bench import own
from quantized_lm.bench.installs import Environment
from quantized_lm.bench.peers.protocol import Description, Task
from quantized_lm.bench.systems import SystemSpec
from quantized_lm.bench.weights import PACKINGS, Size, write_gpt2, write_packed
from quantized_lm.bench.workers import WorkerError

TINY = Size(1, 16, 2, 32, vocab_size=40, lists=2, hypotheses=8, seed=1)
LISTS = [[[3, 4, 5], [3, 4, 6, 6], [7], [3]], [[9, 9], [9, 10, 3]]]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """The tiny GPT-2, packed to 4 bits too, and two lists."""
    weights = tmp_path / "weights.safetensors"
    write_gpt2(TINY, weights)
    write_packed(weights, TINY.num_heads, PACKINGS["4bit"], own.packed_path(tmp_path, "4bit"))
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps(LISTS))
    return Task(str(weights), str(lists), TINY.num_heads, 1, own.FLOAT, str(tmp_path))


@dataclass
class FakeWorker:
    """Scores as it is told; its times are given, the last one again and again."""

    spec: SystemSpec
    table: list[list[float]]
    seconds: list[float] = field(default_factory=lambda: [0.001])
    fails_after: int | None = None
    is_stopped: bool = False
    description: Description = field(default_factory=lambda: Description("1.0", 10, "batch 4"))
    asked: int = 0

    def time(self, index: int) -> float:
        """The next time."""
        self._count()
        return self.seconds[min(self.asked - 1, len(self.seconds) - 1)] * (index + 1)

    def scores(self, index: int) -> list[float]:
        """What it was told."""
        self._count()
        return self.table[index]

    def stop(self) -> None:
        """Note it."""
        self.is_stopped = True

    def _count(self) -> None:
        self.asked += 1
        if self.fails_after is not None and self.asked > self.fails_after:
            raise WorkerError("it fell over")


class LocalWorker:
    """One of our own systems in this very process; peers do not start."""

    def __init__(self, spec: SystemSpec, task: Task, _: Environment, __: Path) -> None:
        if spec.peer != "secondpass":
            raise WorkerError("no such module")
        # The native kernels have tests of their own.
        backend = own.REFERENCE if task.backend == "cpu" else task.backend
        self._system = own.create(replace(task, backend=backend))
        self.description = self._system.describe()

    def time(self, index: int) -> float:
        """Score, and say that it took a millisecond."""
        self._system.score(index)
        return 0.001

    def scores(self, index: int) -> list[float]:
        """Score."""
        return self._system.score(index)

    def stop(self) -> None:
        """Nothing runs."""
