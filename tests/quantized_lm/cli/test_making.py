"""`train`, `quantize`, `export`, `perplexity`: a model from text, by commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from quantized_lm.manifest import read_manifest
from quantized_lm.pipeline.lock import only_one
from tests.tiny import TINY_YAML, write_text

from .conftest import Command


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_YAML.replace("steps: 150", "steps: 5").replace("steps: 100", "steps: 3"))
    return path


def test_four_commands_make_and_measure_a_model(run: Command, recipe: Path, tmp_path: Path) -> None:
    write_text(tmp_path, lines=300)
    folder = ("--run", tmp_path / "run")
    trained = run("train", recipe, "--data", tmp_path, *folder)
    assert trained.exit_code == 0, trained.output
    assert "next: secondpass quantize" in trained.stderr
    quantized = run("quantize", recipe, *folder)
    assert "next: secondpass export" in quantized.stderr
    exported = run("export", recipe, *folder, "--lm-scale", "0.7", "--word-bonus", "0.1")
    assert exported.exit_code == 0, exported.output
    manifest = read_manifest(tmp_path / "run" / "tiny")
    assert manifest.default_weights == {"am_scale": 1.0, "lm_scale": 0.7, "word_bonus": 0.1}
    assert (tmp_path / "run" / "tiny" / "recipe.yaml").read_bytes() == recipe.read_bytes()
    measured = run("perplexity", recipe, *folder, "--split", "dev")
    assert measured.exit_code == 0, measured.output
    report = json.loads(measured.stdout.splitlines()[-1])
    assert report["lines"] == 20
    assert "float teacher" in measured.stdout


def test_a_stage_without_the_one_before_is_told_what_to_do(
    run: Command, recipe: Path, tmp_path: Path
) -> None:
    for stage in ("quantize", "export", "perplexity"):
        result = run(stage, recipe, "--run", tmp_path / "none")
        assert result.exit_code == 2
        assert "run `secondpass train` first" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_an_unknown_split_is_refused(run: Command, recipe: Path, tmp_path: Path) -> None:
    result = run("perplexity", recipe, "--run", tmp_path, "--split", "tset")
    assert result.exit_code == 2
    assert "split is 'tset'; need dev or test" in result.stderr


@pytest.mark.parametrize("command", ["train", "quantize", "reproduce"])
def test_a_device_that_is_not_there_is_refused_at_once(
    run: Command, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    data = () if command == "quantize" else ("--data", tmp_path)
    for device, message in (
        ("gpu", "--device is 'gpu'; need one of cpu, cuda"),
        ("cuda", "--device cuda: this torch is a build for CPUs; install its CUDA build"),
    ):
        result = run(command, tmp_path / "absent.yaml", *data, "--device", device)
        assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run(command, tmp_path / "absent.yaml", *data, "--device", "cuda")
    assert "torch finds no CUDA device; leave it out" in result.stderr


def test_text_that_no_window_has_is_told_of(run: Command, recipe: Path, tmp_path: Path) -> None:
    write_text(tmp_path, lines=300)
    recipe.write_text(recipe.read_text().replace("window: 48", "window: 6"))
    result = run("train", recipe, "--data", tmp_path, "--run", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (
        "% of the text stands past the first 6 tokens of its line, and was never" in result.stderr
    )


@pytest.mark.parametrize("command", ["train", "quantize"])
def test_a_folder_has_one_command_at_a_time(
    run: Command, recipe: Path, tmp_path: Path, command: str
) -> None:
    data = ("--data", tmp_path) if command == "train" else ()
    with only_one(tmp_path / "run"):
        result = run(command, recipe, *data, "--run", tmp_path / "run")
    assert result.exit_code == 2
    assert "another `secondpass` works there; wait for it or stop it" in result.stderr
