"""A whole run of a few seconds against the real server; its numbers mean nothing, its form does."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import loadtest.__main__ as command_line
from loadtest import charts
from loadtest.bodies import kind_of_size, lattice_asks, list_asks, nbest_lists
from loadtest.connection import Connections
from loadtest.plan import Durations
from loadtest.server import ServerError, loopback, serving
from quantized_lm.errors import DataError

TINY = Durations(5, 0.3, (1, 4), 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5)
STEPS = ("70 %", "200 %", "recovery", "bursts", "ramp", "mixed", "difficult")
LATTICE = "N=3 L=2\nI=0\nI=1\nI=2\nJ=0 S=0 E=1 W=the a=-1\nJ=1 S=1 E=2 W=weather a=-9.4\n"


@pytest.fixture
def cli() -> typer.Typer:
    """The command line."""
    cli = typer.Typer()
    cli.command()(command_line.main)
    return cli


@pytest.mark.real_clock
def test_a_run_ends_with_a_table_a_page_and_a_line_of_json(
    cli: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "QUICK", TINY)
    lattices = tmp_path / "lattices"
    lattices.mkdir()
    (lattices / "one.slf").write_text(LATTICE, encoding="utf-8")
    out = tmp_path / "report"
    result = CliRunner().invoke(
        cli, ["--quick", "--out", str(out), "--lattices", str(lattices), "--hypotheses", "5"]
    )
    assert result.exit_code in (0, 1), result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == int(not last["is_passed"])
    assert set(STEPS) <= set(last["steps"])
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    by_name = {one["name"]: one for one in report["summaries"]}
    assert by_name["70 %"]["outcomes"].get("200", 0) > 0
    assert set(by_name["mixed"]["by_kind_ms"]) <= {"1-best", "10-best", "100-best", "lattice"}
    assert by_name["idle, lattice"]["outcomes"] == {"200": 5}
    assert by_name["idle, 5-best"]["stages_ms"]["forward"]["p50"] > 0.0
    assert by_name["70 %"]["server_cores"] > 0.0
    assert all(one["unanswered"] == 0 for one in report["summaries"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "http://" not in page
    assert "https://" not in page
    assert "goodput, of capacity" in result.stdout


@pytest.mark.parametrize(
    "target", ["http://example.org:80", "http://10.0.0.1:8080", "https://127.0.0.1:1", "x"]
)
def test_only_this_machine_is_loaded(cli: typer.Typer, target: str) -> None:
    result = CliRunner().invoke(cli, ["--target", target])
    assert result.exit_code == 2
    assert "loopback address" in result.stderr


def test_loopback_addresses_are_taken() -> None:
    assert loopback("http://localhost:81").url == "http://127.0.0.1:81"
    assert loopback("http://127.0.0.2:81").host == "127.0.0.2"
    assert loopback("http://[::1]:81").host == "::1"
    assert loopback("http://[::1]:81").url == "http://[::1]:81"
    assert Connections("::1", 81).host == "[::1]:81"


def test_nobody_at_the_target_is_one_line(cli: typer.Typer) -> None:
    result = CliRunner().invoke(cli, ["--quick", "--target", "http://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "does not answer" in result.stderr


def test_a_server_that_does_not_start_is_one_line_with_its_log(
    cli: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands_for_server("import sys; sys.exit('error: no such model')", monkeypatch)
    result = CliRunner().invoke(cli, ["--quick"])
    assert result.exit_code == 2
    assert "did not start" in result.stderr
    assert "error: no such model" in result.stderr


def test_a_server_that_ends_badly_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3));"
        "print('running on http://127.0.0.1:9', file=sys.stderr, flush=True); time.sleep(60)"
    )
    stands_for_server(script, monkeypatch)
    with (
        pytest.raises(ServerError, match="ended with 3"),
        serving(None, {}, tmp_path / "log") as address,
    ):
        assert address.port == 9


def stands_for_server(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on it is this that is started."""
    real = subprocess.Popen

    def popen(_arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", script], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


def test_lists_come_from_files_or_are_made_up(tmp_path: Path) -> None:
    lines = [
        {"utt": "a", "hyps": [{"text": f"w {n % 3}", "am": -n} for n in range(5)]},
        {"utt": "b", "hyps": [{"text": "one", "am": -1.0}]},
    ]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (ask,) = list_asks(nbest_lists([path], 4, seed=0), 3, seed=0)
    texts = [one["text"] for one in json.loads(ask.body)["utterances"][0]["hypotheses"]]
    assert texts == ["w 0", "w 1", "w 2"]
    assert ask.kind == kind_of_size(3)
    longer = list_asks(nbest_lists([path], 7, seed=0), 7, seed=0)  # than any list
    assert longer == list_asks(nbest_lists([], 7, seed=0), 7, seed=0)
    for size in (1, 7):
        made_up = list_asks(nbest_lists([], size, seed=0), size, seed=0)
        assert made_up == list_asks(nbest_lists([], size, seed=0), size, seed=0)
        (utterance,) = json.loads(made_up[0].body)["utterances"]
        assert len(utterance["hypotheses"]) == size


def test_a_folder_without_lattices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no"):
        lattice_asks(tmp_path)


def test_without_matplotlib_there_are_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise ImportError

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(charts.ChartsUnavailableError, match="secondpass\\[reproduce\\]"):
        charts.draw(None)  # type: ignore[arg-type]
