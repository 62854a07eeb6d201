"""Claims about memory and served requests, each metered in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantized_lm.bench import memory, served
from quantized_lm.bench.peers.protocol import Task
from quantized_lm.bench.workers import WorkerError
from tests.conftest import TinyRun


@pytest.fixture(autouse=True)
def reference_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers need no native kernels here."""
    monkeypatch.setenv("SECONDPASS_BACKEND", "reference")


def test_memory_is_above_what_torch_takes(task: Task) -> None:
    found = memory.probe(task)
    assert found.packed_bytes == Path(task.weights).stat().st_size
    assert found.threads == 1
    assert found.peak_bytes >= found.scored_bytes


def test_memory_is_metered_in_a_process(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "quantized_lm.bench.memory"]
        answer = (
            '{"packed_bytes": 1, "threads": 1, "loaded_bytes": 2, "scored_bytes": 3, '
            '"peak_bytes": 4}'
        )
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert memory.measure(task).peak_bytes == 4


def test_a_probe_that_fails_says_why(task: Task) -> None:
    with pytest.raises(WorkerError, match="safetensors"):
        memory.measure(replace(task, weights="no.safetensors"))


def test_a_served_request_is_taken_apart(tiny_run: TinyRun, tmp_path: Path) -> None:
    lists = [("the cat sees the dog", "the cat sees the king"), ("a", "b", "the dog", "the")]
    found = served.measure(tiny_run.artifact, lists, 2, tmp_path / "log")
    assert found.hypotheses == 3
    assert found.wall_ms > found.total_ms > found.forward_ms > 0
    assert found.front_end_ms > 0
    assert found.tree_nodes > 5


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"does not start: .*manifest\.json"):
        served.measure(tmp_path, [("a", "b")], 1, tmp_path / "log")


def test_a_refused_request_is_shown(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="answers 422"):
        served.measure(tiny_run.artifact, [()], 1, tmp_path / "log")
