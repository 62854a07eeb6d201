"""What the tests of the commands share: an app of all commands, a model, lists."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from quantized_lm.cli import inspect, rescore, score
from quantized_lm.cli.lazy import LibraryCommands
from tests.fakes import fake_loaded

LISTS = [
    {
        "utt": f"{speaker}-{number}",
        "ref": "the cat sat",
        "hyps": [
            {"text": "the cat saw", "am": -1.0, "lm": -2.0},
            {"text": "the cat sat", "am": -1.5 - number, "lm": -3.0},
            {"text": "a mat sat", "am": -9.0, "lm": -9.0},
        ],
    }
    for speaker in (10, 20)
    for number in range(3)
]
Command = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command on a small model that every folder stands for."""
    loaded = fake_loaded("tiny")
    for module in (rescore, score, inspect):
        monkeypatch.setattr(module, "load_artifact", lambda _, **__: loaded)
        monkeypatch.setattr(module, "model_folder", lambda name=None: Path(name or "tiny"))
    monkeypatch.setattr(inspect, "read_manifest", lambda _: loaded.manifest)
    monkeypatch.setenv("COLUMNS", "120")
    cli = typer.Typer(cls=LibraryCommands)
    cli.callback()(lambda: None)

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Six n-best lists of two speakers."""
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in LISTS))
    return path


@pytest.fixture
def scored(run: Command, lists: Path) -> Path:
    """The same lists, rescored."""
    path = lists.with_name("scored.jsonl.gz")
    assert run("rescore", lists, path).exit_code == 0
    return path


@pytest.fixture
def other_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, `out` links to it, on another disk: nothing is renamed into it or out of it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "out").symlink_to(disk)
    renamed = Path.replace

    def replace(self: Path, target: str | Path) -> Path:
        if (disk in self.resolve().parents) != (disk in Path(target).resolve().parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return renamed(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    return disk
