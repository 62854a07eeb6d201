"""The other end of `peers.protocol`: start a system's process, ask it, stop it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from quantized_lm.bench.installs import Environment, last_line, outside_environment
from quantized_lm.bench.peers.protocol import Description, Task
from quantized_lm.bench.systems import OWN, PEERS, SystemSpec

_ANSWER_TIMEOUT_S = 900.0  # making a model's int8 file and choosing its batch come before the first


class WorkerError(Exception):
    """A process ended or did not answer; the message is its last word."""


class Worker(Protocol):
    """A process that scores one task's lists."""

    description: Description

    def time(self, index: int) -> float:
        """Wall time of scoring one list, seconds."""
        ...

    def scores(self, index: int) -> list[float]:
        """Log P of every hypothesis of one list."""
        ...

    def stop(self) -> None:
        """End the process."""
        ...


class ProcessWorker:
    """A `Worker` in a process of its own; it is warm once this returns.

    Raises:
        WorkerError: it did not start.
    """

    def __init__(self, spec: SystemSpec, task: Task, environment: Environment, log: Path) -> None:
        self._log = log
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                [*_command(spec, environment), json.dumps(asdict(task))],
                cwd=None if spec.peer == OWN else Path(__file__).parent,
                env={
                    **(os.environ if spec.peer == OWN else outside_environment()),
                    **_quiet_threads(spec.threads),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.description = Description(**self._answer()["ready"])

    def time(self, index: int) -> float:
        """Wall time of scoring one list, seconds.

        Raises:
            WorkerError: the process ended.
        """
        return float(self._ask("time", index)["seconds"])

    def scores(self, index: int) -> list[float]:
        """Log P of every hypothesis of one list.

        Raises:
            WorkerError: the process ended.
        """
        scores: list[float] = self._ask("scores", index)["scores"]
        return scores

    def stop(self) -> None:
        """Close its stdin and wait for the end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it may have ended before it read everything
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, operation: str, index: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, "list": index}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_word()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(_ANSWER_TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self.stop()
            raise WorkerError(self._last_word())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_word(self) -> str:
        return last_line(self._log.read_text(encoding="utf-8", errors="replace"))


def _command(spec: SystemSpec, environment: Environment) -> Sequence[str]:
    if spec.peer == OWN:
        return (sys.executable, "-m", "quantized_lm.bench.own")
    return (str(environment.python), "-m", f"peers.{PEERS[spec.peer].module}")


def _quiet_threads(threads: int) -> dict[str, str]:
    """Idle threads sleep rather than spin: another system is at work then."""
    return {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": str(threads)}
