"""`secondpass perplexity`: what quantization cost, on held-out text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quantized_lm.cli.console import command, out, print_json
from quantized_lm.cli.devices import BackendOption, DeviceOption
from quantized_lm.cli.train import RecipeArgument, RunOption
from quantized_lm.ops import AUTO
from quantized_lm.pipeline.evaluate import PerplexityReport, evaluate
from quantized_lm.pipeline.recipe import load_recipe


@command
def run(
    recipe: RecipeArgument,
    run: RunOption = None,
    model: Annotated[
        Path | None, typer.Option(help="Artifact folder. [default: the run's own]")
    ] = None,
    split: Annotated[str, typer.Option(help="dev or test.")] = "test",
    device: DeviceOption = AUTO,
    backend: BackendOption = AUTO,
) -> None:
    """Perplexity of the packed model and of its float teacher on held-out lines.

    Each line is scored alone, or after those before it where the text runs on, its </s> included.
    The difference is paired by line; its 95 % interval is a bootstrap over lines. The last line of
    output is one JSON object.

    secondpass perplexity quantized_lm/recipes/en-small.yaml
    """
    settings = load_recipe(recipe)
    folder = run or Path("runs") / settings.name
    report = evaluate(
        settings,
        run=folder,
        artifact=model or folder / settings.name,
        split=split,
        backend=backend,
        device=device,
    )
    print_report(report, "float teacher")
    print_json(asdict(report))


def print_report(report: PerplexityReport, teacher: str) -> None:
    """A table of the two models and a line of their difference.

    Args:
        teacher: what the float model is called.
    """
    table = Table(title=f"{report.split}: {report.lines} lines, {report.words} words")
    for heading in ("model", "nats/token", "perplexity/token", "perplexity/word"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    table.add_row(
        teacher,
        f"{report.teacher_nll:.4f}",
        f"{report.teacher_token_perplexity:.2f}",
        f"{report.teacher_word_perplexity:.1f}",
    )
    table.add_row(
        f"packed ({report.backend})",
        f"{report.nll:.4f}",
        f"{report.token_perplexity:.2f}",
        f"{report.word_perplexity:.1f}",
    )
    console = out()
    console.print(table)
    console.print(
        f"packed - float: {report.nll_difference:+.4f} nats/token "
        f"(95 % {report.nll_difference_low:+.4f} to {report.nll_difference_high:+.4f}), "
        f"perplexity x {report.perplexity_ratio:.4f}"
    )
