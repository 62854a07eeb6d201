"""Errors on one line, code 2; everything else passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.progress import ProgressColumn

from quantized_lm.cli.console import command, progress
from quantized_lm.errors import DataError, MissingScoreError, explain


def test_an_error_of_ours_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def failing() -> None:
        raise DataError("first\n  second")

    with pytest.raises(typer.Exit) as caught:
        failing()
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_another_error_is_not_hidden() -> None:
    @command
    def failing() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        failing()


def test_the_pointer_is_said_once() -> None:
    assert explain(MissingScoreError("no score", pointer="/a")) == "/a: no score"
    assert explain(MissingScoreError("/a: no score", pointer="/a")) == "/a: no score"


def test_progress_shows_a_speed() -> None:
    with progress("utterances") as bar:
        task = bar.add_task("x", total=2)
        bar.advance(task, 2)
        column = bar.columns[3]
        assert isinstance(column, ProgressColumn)
        assert "utterances/s" in str(column(bar.tasks[task]))


def test_a_disk_that_refuses_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def failing() -> None:
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "file" / "below").mkdir()

    with pytest.raises(typer.Exit) as caught:
        failing()
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/below: Not a directory\n"


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe", "out"), OSError("no name")])
def test_what_names_no_file_and_a_reader_who_left_pass(error: OSError) -> None:
    @command
    def failing() -> None:
        raise error

    with pytest.raises(type(error)):
        failing()


@pytest.mark.parametrize(
    "arguments", [["inspect", "en-tiny"], ["inspect", "en-tiny", "--json"]], ids=["table", "json"]
)
def test_an_output_that_takes_no_more_is_one_line_and_code_2(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "service", *arguments]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "error: standard output or a temporary file: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (2, said)
