"""What the commands say where there is no GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from quantized_lm.cli import COMMANDS
from quantized_lm.ops import BACKENDS
from service.cli import build_cli
from service.server import DrainingServer
from tests.conftest import TinyRun

# With the artifact, the run's folder and its recipe in the place of A, R and Y.
LOADING = {
    "serve": ["--model", "A", "--port", "0"],
    "score": ["a text", "--model", "A"],
    "rescore": ["L", "OUT", "--model", "A"],
    "compare": ["LATTICE", "--lists", "L", "--model", "A"],
    "perplexity": ["Y", "--run", "R", "--model", "A"],
    "inspect": ["A", "--verify"],
}
TRAINING = ("train", "quantize", "reproduce")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if BACKENDS["triton"].is_available:
        pytest.skip("there is a GPU")

    async def stop(_: DrainingServer) -> None:
        """Whoever gets as far as to serve, stops."""

    monkeypatch.setattr(DrainingServer, "main_loop", stop)
    for name in ("TRITON_INTERPRET", "SECONDPASS_DEVICE", "SECONDPASS_BACKEND"):
        monkeypatch.delenv(name, raising=False)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(build_cli(), list(arguments))


def errors(result: Result) -> list[str]:
    """Without the server's log."""
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture
def filled(tiny_run: TinyRun, tmp_path: Path) -> dict[str, str]:
    lists = tmp_path / "lists.jsonl"
    lists.write_text('{"utt": "u", "ref": "a", "hyps": [{"text": "a", "am": 0.0}]}\n')
    lattice = tmp_path / "u.slf"
    lattice.write_text("VERSION=1.0\nN=2 L=1\nI=0\nI=1\nJ=0 S=0 E=1 W=a a=0.0 l=0.0\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(asdict(tiny_run.recipe)))  # JSON is YAML
    return {
        "A": str(tiny_run.artifact),
        "R": str(tiny_run.out),
        "Y": str(recipe),
        "L": str(lists),
        "LATTICE": str(lattice),
        "OUT": str(tmp_path / "out.jsonl"),
    }


@pytest.mark.parametrize("name", LOADING)
def test_a_gpu_that_is_not_there_is_told_in_one_line(name: str, filled: dict[str, str]) -> None:
    arguments = [filled.get(word, word) for word in LOADING[name]]
    result = invoke(name, *arguments, "--device", "cuda")
    assert result.exit_code == 2
    (line,) = errors(result)
    assert line.startswith("error: ")
    assert line.endswith("use the CPU engine, --device cpu")


def test_the_device_may_be_set_in_the_environment(
    filled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECONDPASS_DEVICE", "cuda")
    assert errors(invoke("score", "a", "--model", filled["A"]))[0].endswith("--device cpu")
    assert invoke("score", "a", "--model", filled["A"], "--device", "cpu").exit_code == 0


@pytest.mark.parametrize("name", ["serve", "perplexity"])
def test_a_device_and_another_ones_kernels_are_refused(name: str, filled: dict[str, str]) -> None:
    arguments = [filled.get(word, word) for word in LOADING[name]]
    result = invoke(name, *arguments, "--device", "cuda", "--backend", "cpu")
    assert result.exit_code == 2
    (line,) = errors(result)
    assert "backend is cpu, which computes on cpu, and device is cuda" in line


def test_workers_of_a_cluster_have_no_gpu(filled: dict[str, str]) -> None:
    result = invoke("rescore", filled["L"], filled["OUT"], "--engine", "ray", "--device", "cuda")
    assert result.exit_code == 2
    assert errors(result) == [
        "error: got --engine ray, which has CPUs, and --device cuda; give one"
    ]


def test_every_command_that_loads_or_trains_a_model_says_where() -> None:
    for name in ("serve", *(name for name, _ in COMMANDS)):
        shown = invoke(name, "--help").stdout
        assert ("--device" in shown) == (name in (*LOADING, *TRAINING)), name
        # A variable that is set for servers decides nothing of a training.
        assert ("SECONDPASS_DEVICE" in shown) == (name in LOADING), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu"], "use the CPU engine, --device cpu"),
        (["--tune"], "go with --gpu"),
        (["--rehearse"], "go with --gpu"),
    ],
)
def test_the_benchmark_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = invoke("bench", *arguments, "--output", str(tmp_path))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
