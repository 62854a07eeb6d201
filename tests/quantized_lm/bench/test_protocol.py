"""Claims about the processes that are timed and the talk with them."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quantized_lm.bench import workers
from quantized_lm.bench.installs import Environment
from quantized_lm.bench.own import FLOAT, OwnGpt2
from quantized_lm.bench.peers import protocol
from quantized_lm.bench.peers.protocol import Task
from quantized_lm.bench.systems import OWN, PEERS, SystemSpec
from quantized_lm.bench.workers import ProcessWorker, WorkerError

SPEC = SystemSpec("ours", OWN, FLOAT, threads=1)
NOWHERE = Environment(Path("nowhere"))


def test_requests_are_answered_in_order(task: Task) -> None:
    system, answers = OwnGpt2(task), io.StringIO()
    requests = ['{"op": "scores", "list": 1}\n', '{"op": "time", "list": 0}\n']
    protocol.serve(system, requests, answers)
    scores, times = map(json.loads, answers.getvalue().splitlines())
    assert scores["scores"] == system.score(1)
    assert times["seconds"] > 0
    assert times["cpu_seconds"] >= 0


def test_the_fastest_option_is_chosen() -> None:
    assert protocol.fastest((3, 1, 2), lambda option: time.sleep(option / 200)) == 1


def test_a_process_scores_as_the_model_does(task: Task, tmp_path: Path) -> None:
    worker = ProcessWorker(SPEC, task, NOWHERE, tmp_path / "log")
    try:
        assert worker.description.setting == "torch float32"
        assert worker.scores(0) == pytest.approx(OwnGpt2(task).score(0), rel=1e-5)
        assert worker.time(0) > 0
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(WorkerError):
            worker.time(0)
    finally:
        worker.stop()


def test_a_process_that_does_not_start_gives_its_last_word(task: Task, tmp_path: Path) -> None:
    missing = replace(task, weights=str(tmp_path / "no.safetensors"))
    with pytest.raises(WorkerError, match=r"no\.safetensors"):
        ProcessWorker(SPEC, missing, NOWHERE, tmp_path / "log")


def test_a_process_that_hangs_is_ended(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_ANSWER_TIMEOUT_S", 0.05)
    with pytest.raises(WorkerError):
        ProcessWorker(SPEC, task, NOWHERE, tmp_path / "log")


def test_peers_are_started_by_their_own_python() -> None:
    for peer, row in PEERS.items():
        spec = SystemSpec("theirs", peer, "any")
        python, _, module = workers._command(spec, NOWHERE)
        assert python == str(NOWHERE.python)
        package, _, file = module.partition(".")
        assert (Path(workers.__file__).parent / package / f"{file}.py").exists(), row.module
