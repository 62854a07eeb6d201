"""How a timed process is asked: one JSON object a line on its stdin, one answer a line on stdout.

    started with one argument     {"weights": PATH, "lists": PATH, "heads": 8, "threads": 2,
                                   "variant": NAME, "cache": FOLDER}
    says once it is warm          {"ready": {"version": ..., "model_bytes": ..., "setting": ...}}
    {"op": "time", "list": 3}     {"seconds": wall time, "cpu_seconds": time of all its threads}
    {"op": "scores", "list": 3}   {"scores": [log P(hypothesis, </s>), nats, ...]}

`weights` is a safetensors file with the tensors of a Hugging Face GPT-2, `lists` a JSON list of
n-best lists of token ids without the boundary symbol, which is id 0 and both begins and ends a
text. Between requests the process sleeps in a read, so that it costs others nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TextIO

BOUNDARY_ID = 0


@dataclass(frozen=True)
class Task:
    """What a process is started with; see the module.

    Attributes:
        cache: folder for what is made from the weights; its files are kept for the next run.
        backend: which of our backends; others ignore it.
    """

    weights: str
    lists: str
    heads: int
    threads: int
    variant: str
    cache: str
    backend: str = ""

    def read_texts(self) -> list[list[str]]:
        """The n-best lists, where they are texts."""
        texts: list[list[str]] = json.loads(Path(self.lists).read_text(encoding="utf-8"))
        return texts

    def read_lists(self) -> list[list[list[int]]]:
        """The n-best lists."""
        lists: list[list[list[int]]] = json.loads(Path(self.lists).read_text(encoding="utf-8"))
        return lists


@dataclass(frozen=True)
class Description:
    """What a system says of itself.

    Attributes:
        version: of the library.
        model_bytes: the weights as the system stores them, on disk or packed in memory.
        setting: what was chosen: batch, precision, and the like.
    """

    version: str
    model_bytes: int
    setting: str


class System(Protocol):
    """Something that scores the task's lists."""

    def describe(self) -> Description:
        """Say what runs."""
        ...

    def score(self, index: int) -> list[float]:
        """Log P of every hypothesis of one list, in nats. This is what is timed."""
        ...


def main(create: Callable[[Task], System]) -> None:
    """Serve until stdin ends. What a library prints goes to stderr, never between the answers."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    system = create(Task(**json.loads(sys.argv[1])))
    system.score(0)
    _send(answers, {"ready": asdict(system.describe())})
    serve(system, sys.stdin, answers)


def serve(system: System, requests: Iterable[str], answers: TextIO) -> None:
    """Answer every request."""
    for line in requests:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        scores = system.score(request["list"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if request["op"] == "scores":
            _send(answers, {"scores": scores})
        else:
            _send(answers, {"seconds": wall, "cpu_seconds": cpu})


def fastest(options: Iterable[int], run: Callable[[int], object]) -> int:
    """The option whose second and third runs were shortest."""
    seconds = {}
    for option in options:
        run(option)
        laps = []
        for _ in range(2):
            start = time.perf_counter()
            run(option)
            laps.append(time.perf_counter() - start)
        seconds[option] = min(laps)
    return min(seconds, key=seconds.__getitem__)


def _send(answers: TextIO, answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
