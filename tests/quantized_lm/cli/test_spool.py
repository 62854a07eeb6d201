"""Input from a pipe gives what a file gives, and its faults have the pipe's name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quantized_lm.cli import rescore
from quantized_lm.cli.references import read_references
from quantized_lm.cli.spool import readable_twice
from quantized_lm.errors import DataError

from .conftest import Command


@contextmanager
def pipe_with(content: bytes) -> Iterator[Path]:
    """A pipe that holds all of it, so that nobody has to wait."""
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    try:
        yield Path(f"/dev/fd/{read}")
    finally:
        os.close(read)


def test_lists_from_a_pipe_are_rescored_as_those_of_a_file(run: Command, lists: Path) -> None:
    expected, target = lists.with_name("expected.jsonl"), lists.with_name("out.jsonl")
    assert run("rescore", lists, expected).exit_code == 0
    with pipe_with(lists.read_bytes()) as pipe:
        result = run("rescore", pipe, target)
    assert result.exit_code == 0, result.output
    assert "6 utterances" in result.stderr
    assert target.read_bytes() == expected.read_bytes()


def test_lattices_too(run: Command, tmp_path: Path) -> None:
    lattice = b"N=3 L=2\nI=0\nI=1 W=the\nI=2 W=cat\nJ=0 S=0 E=1 a=-1\nJ=1 S=1 E=2 a=-2\n"
    target = tmp_path / "out.jsonl"
    with pipe_with(lattice) as pipe:
        result = run("rescore", pipe, target, "--format", "htk")
    assert result.exit_code == 0, result.output
    assert '"text": "the cat"' in target.read_text()


def test_references_too(lists: Path) -> None:
    with pipe_with(lists.read_bytes()) as pipe:
        assert read_references(pipe) == read_references(lists)
    with pipe_with(b"a the cat\nb\n") as pipe:
        assert read_references(pipe) == {"a": "the cat", "b": ""}


def test_a_fault_is_named_by_the_pipe(run: Command, lists: Path) -> None:
    with pipe_with(lists.read_bytes() + b"\n[1]\n") as pipe:
        result = run("rescore", pipe, lists.with_name("out.jsonl"))
    assert result.exit_code == 2
    assert result.stderr == f"error: {pipe}:8: is a JSON list; need an object\n"


def test_a_pipe_for_which_there_is_no_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full_disk)
    with (
        pipe_with(b"") as pipe,
        pytest.raises(DataError, match=r"read twice \(No space left on device\); give a file"),
        readable_twice(pipe),
    ):
        pass


def test_files_and_folders_are_read_where_they_are(lists: Path) -> None:
    for path in (lists, lists.parent, lists.with_name("absent")):
        with readable_twice(path) as twice:
            assert twice == path


def test_an_input_that_changes_meanwhile_is_refused(
    run: Command, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_the_first(*_: object) -> list[dict[str, object]]:
        return [{"changed": False, "degraded": []}]

    monkeypatch.setattr(rescore, "engine_by_name", lambda *_: only_the_first)
    target = lists.with_name("out.jsonl")
    result = run("rescore", lists, target)
    assert result.exit_code == 2
    assert "1 results of 6 utterances" in result.stderr
    assert not target.exists()
