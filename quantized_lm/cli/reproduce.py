"""`secondpass reproduce`: every number of a task's table from its text, resumable."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from quantized_lm.cli.console import command, note, print_json
from quantized_lm.cli.devices import TrainingDeviceOption, require_training_device
from quantized_lm.pipeline.lock import only_one
from quantized_lm.pipeline.reproduce.earlier import read_earlier, rows_left_out, with_earlier
from quantized_lm.pipeline.reproduce.plan import make_plan
from quantized_lm.pipeline.reproduce.report import Report, make_report
from quantized_lm.pipeline.reproduce.results import MEASURED
from quantized_lm.pipeline.reproduce.run import run_cells
from quantized_lm.pipeline.reproduce.store import Store
from quantized_lm.pipeline.reproduce.task import load_task
from quantized_lm.pipeline.reproduce.view import View
from quantized_lm.pipeline.reproduce.writing import write_report


@command
def run(  # noqa: PLR0913 - each is an option of the command
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Name of a task, such as ptb, or a task file.")
    ],
    data: Annotated[
        Path, typer.Option(help="Folder that holds the task's text files (gzip, a line each).")
    ],
    *,
    speech: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the n-best lists and lattices of the task, if it has some; "
            "without it no word errors are counted."
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(help="Of the models and their training: smoke, cpu or full.")
    ] = "cpu",
    run: Annotated[Path, typer.Option("--run", help="Folder for what the stages make.")] = Path(
        "runs/reproduce"
    ),
    architecture: Annotated[
        list[str] | None, typer.Option(help="Column of the table, repeatable. [default: all]")
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="PATTERN", help="Make only rows whose name matches, as mixed-*.")
    ] = "*",
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make nothing; report what there is.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the report here too, with the rows that an earlier one there has and the "
            "run folder has not.",
        ),
    ] = None,
    device: TrainingDeviceOption = "cpu",
) -> None:
    """Make a table of models from recipes: train, quantize, measure, report.

    Every stage is kept under a hash of all that decides it: what is there is not made again, a
    changed text or recipe finds nothing old, and after a kill the same command goes on. Rows that
    tell most are made first; one that fails is reported and stops no other (exit code 1).
    The report is written in RUN/TASK-SIZE/report. The last line of output is one JSON object.

    secondpass reproduce ptb --size smoke --data ~/text
    """
    require_training_device(device)
    plan_of = partial(
        make_plan, load_task(task), size=size, data=data, speech=speech, device=device
    )
    plan = plan_of(architectures=architecture)
    earlier = read_earlier(report, plan) if report else None
    store = Store(run / f"{plan.task.name}-{size}")
    failures = {}
    cells = plan.in_order(only)
    if not report_only:
        with only_one(run):
            failures = run_cells(cells, store, View(Console(stderr=True)))
    now = datetime.now(timezone.utc)
    found = make_report(plan, store, now=now)
    folders = [store.root / "report"]
    write_report(found, folders[0], note)
    if report:
        folders.append(report)
        if earlier:
            whole = plan_of(architectures=None)
            found = with_earlier(make_report(whole, store, now=now), earlier, whole)
            if lost := rows_left_out(found, earlier):
                note(
                    f"{report}: without {', '.join(lost)} of the earlier report: their text, "
                    "recipe or lists are others, or their float model was trained again"
                )
        write_report(found, report, note)
    print_json(_summary(found, failures, folders))
    if failures:
        raise typer.Exit(1)


def _summary(report: Report, failures: dict[str, str], folders: list[Path]) -> dict[str, object]:
    """For programs."""
    return {
        "task": report.task,
        "size": report.size,
        "cells": len(report.cells),
        "measured": sum(cell.status == MEASURED for cell in report.cells),
        "failed": failures,
        "targets": [
            {"compression": target.compression, "reached": reached}
            for target, reached in zip(report.goals, report.reached, strict=True)
        ],
        "report": [str(folder) for folder in folders],
    }
