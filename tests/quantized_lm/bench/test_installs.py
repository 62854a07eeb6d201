"""Claims about the peers' environment: installed once, and a failure is one line."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from quantized_lm.bench.installs import (
    Environment,
    last_line,
    outside_environment,
    torch_requirement,
)


class FakePip:
    """Notes what is run; fails where it is told to."""

    def __init__(self, fails_at: str = "", error: str = "") -> None:
        self.commands: list[Sequence[str]] = []
        self.fails_at = fails_at
        self.error = error

    def __call__(self, command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if command[2] == "venv":
            python = Path(command[3]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
        code = int(bool(self.fails_at) and self.fails_at in " ".join(command))
        return subprocess.CompletedProcess(command, code, "collecting\n", self.error)


def test_what_is_installed_is_not_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip()
    monkeypatch.setattr(subprocess, "run", pip)
    environment = Environment(tmp_path / "venv")
    assert environment.install(("a>=1", "b")) is None
    assert environment.install(("a>=1", "b")) is None
    assert environment.install(("c",)) is None
    assert [list(command[1:4]) for command in pip.commands] == [
        ["-m", "venv", str(tmp_path / "venv")],
        ["-m", "pip", "install"],
        ["-m", "pip", "install"],
    ]


def test_a_failure_is_the_line_that_names_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip("nothing-like-it", "ERROR: no such package\nnotice: a newer pip\n")
    monkeypatch.setattr(subprocess, "run", pip)
    environment = Environment(tmp_path / "venv")
    assert environment.install(("nothing-like-it",)) == "ERROR: no such package"
    assert environment.install(("nothing-like-it",)) == "ERROR: no such package"


def test_no_venv_is_a_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip("-m venv", "no ensurepip\n"))
    assert Environment(tmp_path / "venv").install(("a",)) == "no ensurepip"


def test_an_endless_build_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: Sequence[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 3600)

    monkeypatch.setattr(subprocess, "run", hang)
    assert Environment(tmp_path).install(("a",)) == "not installed within 3600 s"


def test_peers_get_our_torch() -> None:
    assert torch_requirement() == f"torch=={torch.__version__.partition('+')[0]}"


def test_peers_do_not_see_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PIP_CACHE_DIR", "/cache")
    assert "PYTHONPATH" not in outside_environment()
    assert outside_environment()["PIP_CACHE_DIR"] == "/cache"


def test_silence_has_a_last_line() -> None:
    assert last_line("") == "no message"
    assert last_line("one\n two \n\n") == "two"
