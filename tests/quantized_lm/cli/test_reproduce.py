"""`reproduce`: a table of the made-up language by one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from quantized_lm.cli import reproduce
from tests.quantized_lm.pipeline.reproduce.conftest import TINY_TASK
from tests.tiny import write_text


@pytest.fixture
def task(tmp_path: Path) -> Path:
    write_text(tmp_path, lines=300)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_TASK)
    return path


def reproduce_it(task: Path | str, *options: object) -> Result:
    cli = typer.Typer(rich_markup_mode=None)
    cli.command()(reproduce.run)
    folder = task.parent if isinstance(task, Path) else Path()
    fixed = ["--size", "small", "--data", folder, "--run", folder / "runs"]
    return CliRunner().invoke(cli, [str(part) for part in (task, *fixed, *options)])


def test_one_command_makes_rows_and_reports(task: Path, tmp_path: Path) -> None:
    chosen = ("--architecture", "transformer", "--only", "[fr][lt]*", "--report", tmp_path / "copy")
    result = reproduce_it(task, *chosen)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["cells"], summary["measured"], summary["failed"]) == (12, 2, {})
    assert summary["targets"][0] == {"compression": 2.0, "reached": None}  # one of two columns
    assert "transformer rtn-8bit: complete" in result.stderr
    copy, kept = tmp_path / "copy", tmp_path / "runs" / "tiny-small" / "report"
    assert summary["report"] == [str(kept), str(copy)]
    assert (copy / "report.json").read_bytes() == (kept / "report.json").read_bytes()
    again = reproduce_it(task, *chosen, "--report-only")
    assert json.loads(again.stdout.splitlines()[-1])["measured"] == 2
    assert "complete" not in again.stderr


def test_a_report_keeps_rows_whose_run_folder_is_gone(task: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    chosen = ("--architecture", "transformer", "--report", copy)
    assert reproduce_it(task, *chosen, "--only", "[fr][lt]*").exit_code == 0
    (tmp_path / "runs").rename(tmp_path / "gone")
    result = reproduce_it(task, *chosen, "--only", "float32")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["measured"] == 2
    cells = json.loads((copy / "report.json").read_text())["cells"]
    made = {cell["row"]: bool(cell["made"]) for cell in cells if cell["status"] == "measured"}
    assert made == {"float32": False, "rtn-8bit": True}
    assert "without" not in result.stderr
    task.write_text(task.read_text().replace("seed: 3", "seed: 4"))
    result = reproduce_it(task, *chosen, "--only", "float32")
    assert f"{copy}: without transformer rtn-8bit of the earlier report" in result.stderr
    (copy / "report.json").write_text("{")
    result = reproduce_it(task, *chosen, "--only", "qat-2bit")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "no report of an earlier run" in result.stderr


def test_a_failed_row_gives_exit_code_1(task: Path) -> None:
    task.write_text(task.read_text().replace("matrix_lr: 0.02", "matrix_lr: .inf"))
    result = reproduce_it(task, "--architecture", "transformer", "--only", "float32")
    assert result.exit_code == 1, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert "diverged" in summary["failed"]["transformer float32"]


def test_bad_input_is_one_line_and_exit_code_2(task: Path, tmp_path: Path) -> None:
    result = reproduce_it(task, "--only", "none")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "no row matches 'none'" in result.stderr
    (tmp_path / "tiny.txt.gz").unlink()
    missing = reproduce_it(task)
    assert missing.exit_code == 2
    assert "tiny.txt.gz: cannot be read" in missing.stderr
    assert reproduce_it("unknown-task").exit_code == 2
