"""`inspect`: bits, sizes, compression and provenance of a packed model."""

from __future__ import annotations

import dataclasses
import json

import pytest

from quantized_lm.cli import inspect
from quantized_lm.tensor_entry import TensorEntry
from tests.fakes import fake_loaded

from .conftest import Command


def test_sizes_and_bits_are_shown(run: Command) -> None:
    result = run("inspect", "some/folder")
    assert result.exit_code == 0, result.output
    assert "4,096" in result.stdout
    assert f"longest text     {fake_loaded().manifest.max_tokens - 1} tokens" in result.stdout
    assert "16.0 KiB" in result.stdout
    assert "compression      1.0x" in result.stdout
    assert "provenance.made_by a test" in result.stdout
    assert "manifest only" in result.stdout


def test_tensors_at_their_entropy_show_both_sizes(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {
        "up": TensorEntry("4bit", (64, 64), 64, 640, 1.25, "rans", 5),
        "down": TensorEntry("ternary", (64, 64), 64, 1155, 2.2558, "", 3),
    }
    manifest = dataclasses.replace(
        fake_loaded().manifest, tensors=tensors, parameters=8192, bits_per_weight=1.8
    )
    monkeypatch.setattr(inspect, "read_manifest", lambda _: manifest)
    output = run("inspect").stdout
    assert "packed" in output
    assert "4bit, 5 levels" in output
    assert "1.250" in output
    assert f"{8 * (64 * 32 + 64 * 2 + 5) / 4096:.3f}" in output
    assert "bits per weight  1.800 on disk, 3.258 packed in memory" in output


def test_verify_loads_the_model(run: Command) -> None:
    assert "hashes and golden scores" in run("inspect", "--verify").stdout


def test_json_is_the_manifest(run: Command) -> None:
    assert json.loads(run("inspect", "--json").stdout)["name"] == "tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["some/folder", "--symbols", "words.txt"], "--symbols needs lattices, and some/folder is"),
        (["--max-arcs", "9"], "--max-arcs needs lattices, and en-small is none by its name"),
        (["some/folder", "--model", "other"], "--model needs lattices"),
        (["--format", "htk"], "--format needs lattices, and en-small is none"),
        (["some/folder", "--device", "cpu"], "--device needs --verify"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    run: Command, options: list[str], message: str
) -> None:
    result = run("inspect", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert run("inspect", "some/folder", "--verify", "--device", "cpu").exit_code == 0
