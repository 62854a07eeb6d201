"""A report as files: report.json, pictures, and report.md that shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantized_lm.files import write_atomic
from quantized_lm.pipeline.reproduce.markdown import render
from quantized_lm.pipeline.reproduce.plots import PlotsUnavailableError, draw
from quantized_lm.pipeline.reproduce.report import Report
from quantized_lm.records import write_record


def write_report(report: Report, out: Path, note: Callable[[str], None]) -> None:
    """Write them all.

    Args:
        note: is told if pictures cannot be drawn here.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_record(out / "report.json", report)
    try:
        pictures = draw(report, out)
    except PlotsUnavailableError as error:
        note(str(error))
        pictures = []
    write_atomic(out / "report.md", render(report, pictures).encode())
