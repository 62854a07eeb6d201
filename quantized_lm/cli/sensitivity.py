"""`secondpass sensitivity`: what quantizing each matrix alone costs, by format."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quantized_lm.cli.console import command, note, out, print_json
from quantized_lm.cli.train import RecipeArgument, RunOption
from quantized_lm.pipeline.recipe import load_recipe
from quantized_lm.pipeline.rounding import RATED_CHOICES
from quantized_lm.pipeline.sensitivity import (
    CALIBRATION_TOKENS,
    CHOICES,
    METRICS,
    SensitivityReport,
    measure_sensitivity,
)

RATES = "rates"


@command
def run(
    recipe: RecipeArgument,
    run: RunOption = None,
    metric: Annotated[str, typer.Option(help=f"What is measured: {' or '.join(METRICS)}.")] = "kl",
    formats: Annotated[
        str,
        typer.Option(
            help="Formats to try, with commas; FORMAT:TABLE names a level table, @BITS behind it "
            f"a rate of entropy-coded codes. `{RATES}` stands for some of these, for "
            "`secondpass allocate --coded-bits`."
        ),
    ] = ",".join(CHOICES),
    windows: Annotated[
        int | None,
        typer.Option(
            min=2, help=f"Training windows to measure on. [default: {CALIBRATION_TOKENS} tokens]"
        ),
    ] = None,
) -> None:
    """Measure how sensitive each matrix of the trained float model is to being rounded.

    kl: KL divergence from the float model's predictions with one matrix rounded, everything else
    left alone. hessian: half the mean of the matrix's Hessian diagonal times its squared rounding
    error (HAWQ-V2), which tells the same from gradients. Both are nats per token, on text of the
    training split. Kill it and call it again: it goes on. The last line of output is one JSON
    object, which is also kept in the run's folder for `secondpass allocate`.

    secondpass sensitivity quantized_lm/recipes/en-small.yaml --metric kl
    """
    settings = load_recipe(recipe)
    folder = run or Path("runs") / settings.name
    at_rates = formats == RATES
    choices = RATED_CHOICES if at_rates else tuple(map(str.strip, formats.split(",")))
    report = measure_sensitivity(
        settings,
        metric=metric,
        choices=choices,
        run=folder,
        out=folder / "sensitivity",
        windows=windows,
    )
    out().print(_table(report))
    size = "--coded-bits 2" if at_rates else "--budget 16x"
    note(f"next: secondpass allocate {recipe} --metric {metric} {size}")
    print_json(asdict(report))


def _table(report: SensitivityReport) -> Table:
    title = (
        f"{report.recipe}: {report.metric}, nats/token on {report.tokens} tokens, "
        "largest relative standard error in the last column"
    )
    table = Table(title=title)
    table.add_column("matrix", no_wrap=True)
    choices = list(next(iter(report.costs.values())))
    for heading in (*choices, "+-"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in report.costs.items():
        errors = [cost.standard_error / abs(cost.mean) for cost in row.values() if cost.mean]
        error = max(errors, default=0.0)
        table.add_row(name, *(f"{row[choice].mean:.2g}" for choice in choices), f"{error:.0%}")
    return table
