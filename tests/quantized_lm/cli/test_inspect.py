"""`inspect`: bits, sizes, compression and provenance of a packed model."""

from __future__ import annotations

import json

from .conftest import Command


def test_sizes_and_bits_are_shown(run: Command) -> None:
    result = run("inspect", "some/folder")
    assert result.exit_code == 0, result.output
    assert "4,096" in result.stdout
    assert "16.0 KiB" in result.stdout
    assert "compression      1.0x" in result.stdout
    assert "provenance.made_by a test" in result.stdout
    assert "manifest only" in result.stdout


def test_verify_loads_the_model(run: Command) -> None:
    assert "hashes and golden scores" in run("inspect", "--verify").stdout


def test_json_is_the_manifest(run: Command) -> None:
    assert json.loads(run("inspect", "--json").stdout)["name"] == "tiny"
