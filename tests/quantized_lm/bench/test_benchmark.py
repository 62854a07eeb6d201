"""Claims about a whole run: one object at the end, failing peers are named, input is checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from quantized_lm.bench import benchmark, lists, memory, options, own, peaks, served, sets
from quantized_lm.bench.installs import Environment
from quantized_lm.bench.memory import Memory
from quantized_lm.bench.options import BenchOptions
from quantized_lm.bench.peers.protocol import Task
from quantized_lm.bench.rounds import RoundOptions
from quantized_lm.bench.workers import WorkerError
from quantized_lm.cli import bench
from quantized_lm.ops.reference import ReferenceBackend
from tests.fakes import fake_loaded

from .conftest import TINY, LocalWorker

FEW = RoundOptions(rounds=1, processes=1, passes=1)


@pytest.fixture(autouse=True)
def nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems in this process, a small bundled model, no server, no pip."""
    monkeypatch.setattr(
        lists, "made_up_texts", lambda *_, **__: [("a cat", "the cat"), ("a", "the")]
    )
    monkeypatch.setattr(own, "_unpack", lambda _: None)
    monkeypatch.setattr(own, "load_artifact", lambda *_, **__: fake_loaded("tiny"))
    monkeypatch.setattr(options, "QUICK_SIZE", TINY)
    monkeypatch.setattr(sets, "ProcessWorker", LocalWorker)
    monkeypatch.setattr(benchmark, "select_backend", lambda *_, **__: ReferenceBackend())
    monkeypatch.setattr(memory, "measure", lambda _: Memory(1, 2, 3, 4, 5))
    monkeypatch.setattr(served, "measure", _no_server)
    monkeypatch.setattr(Environment, "install", lambda *_: "ERROR: no network")
    monkeypatch.setattr(peaks, "measure", lambda *_: [])


def _no_server(*_: object) -> None:
    raise WorkerError("port taken")


def run(*arguments: object) -> Result:
    cli = typer.Typer()
    cli.command()(bench.run)
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_quick_run_ends_with_one_json_object(tmp_path: Path) -> None:
    result = run("--quick", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout.splitlines()[-1])
    assert record == json.loads((tmp_path / "report.json").read_text())
    assert [one["name"] for one in record["list_sets"]] == ["quick", "en-small made up"]
    assert "served requests of GPT-2 quick 4bit: port taken" in result.stdout
    assert "served requests of en-small: port taken" in result.stdout
    rows = record["list_sets"][0]["rows"]
    assert [row["name"] for row in rows] == ["secondpass float32 (torch)", "secondpass 4bit"]
    assert rows[1]["same_weights_difference"] == 0


def test_peers_that_cannot_be_had_are_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SIZES", {"s": TINY})
    monkeypatch.setattr(
        bench,
        "BenchOptions",
        lambda output, peers: replace(
            options.quick_options(output), peers=peers, packings=("4bit",), rounds=FEW
        ),
    )
    result = run("--sizes", "s", "--rounds", 2, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "CTranslate2 int8, padded did not run: not installed: ERROR: no network" in result.stdout
    assert "report.png: ERROR: no network" in result.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["list_sets"][0]["rows"]
    assert len(rows[-1]["rounds_ms"]) == 2


def test_a_peer_that_does_not_start_is_named(tmp_path: Path) -> None:
    chosen = replace(
        options.quick_options(tmp_path), peers=True, bundled=False, rounds=FEW, sizes={"s": TINY}
    )
    setting = sets.Setting(chosen, Environment(tmp_path), lambda items, _: items)
    failed = [row for row in sets.gpt2_set("s", TINY, setting).rows if row.failure]
    assert {row.failure for row in failed} == {"no such module"}
    assert not any(row.is_own for row in failed)


def test_memory_that_cannot_be_metered_is_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Task) -> Memory:
        raise WorkerError("no /proc")

    monkeypatch.setattr(memory, "measure", fail)
    chosen = replace(options.quick_options(tmp_path), bundled=False)
    report = benchmark.run(chosen, lambda items, _: items)
    assert "memory of GPT-2 quick 4bit: no /proc" in report.remarks
    assert report.served == {}


def test_real_lists_are_timed_under_their_name(tmp_path: Path) -> None:
    path = tmp_path / "meeting.test.jsonl"
    path.write_text('{"utt": "u", "hyps": [{"text": "a cat"}, {"text": "the cat"}]}\n')
    chosen = replace(options.quick_options(tmp_path), files=(path,), sizes={})
    report = benchmark.run(chosen, lambda items, _: items)
    assert [one.name for one in report.list_sets] == ["en-small meeting.test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "s,xl"], "error: sizes are 's,xl'; need some of s, b, en-small"),
        (["--sizes", ""], "error: sizes are ''; need some of"),
        (["--lists", "missing.jsonl"], "error: missing.jsonl: cannot be read"),
    ],
)
def test_bad_input_is_one_line(arguments: Sequence[str], message: str, tmp_path: Path) -> None:
    result = run("--output", tmp_path, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_a_chart_is_drawn_by_the_other_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Environment, "install", lambda *_: None)
    python = Environment(tmp_path / "peers").python
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho '$@' > /dev/null; test \"$2\" = peers.chart || exit 1\n")
    python.chmod(0o755)
    assert benchmark.draw(tmp_path) is None
    python.write_text("#!/bin/sh\necho 'no fonts' >&2; exit 1\n")
    assert benchmark.draw(tmp_path) == "no fonts"


def test_options_default_to_everything(tmp_path: Path) -> None:
    chosen = BenchOptions(tmp_path)
    assert list(chosen.sizes) == ["s", "b"]
    assert chosen.rounds.rounds >= 7
    assert chosen.peers
