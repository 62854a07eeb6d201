"""`secondpass export`: packed student to an artifact folder that can be served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantized_lm.cli.console import command, note
from quantized_lm.cli.train import RecipeArgument, RunOption
from quantized_lm.pipeline.export import RunFolders, export
from quantized_lm.pipeline.recipe import load_recipe, whole_recipe

LmScaleOption = Annotated[
    float, typer.Option(help="LM scale for requests that name no weights; tune it on dev.")
]
WordBonusOption = Annotated[
    float, typer.Option(help="Nats added per word for requests that name no weights.")
]


@command
def run(
    recipe: RecipeArgument,
    run: RunOption = None,
    lm_scale: LmScaleOption = 0.5,
    word_bonus: WordBonusOption = 0.0,
) -> None:
    """Write the model as a folder: manifest, packed weights, tokenizer, golden scores, recipe.

    secondpass export quantized_lm/recipes/en-small.yaml --lm-scale 0.6
    """
    settings = load_recipe(recipe)
    weights = {"am_scale": 1.0, "lm_scale": lm_scale, "word_bonus": word_bonus}
    home = run or Path("runs") / settings.name
    folder = export(
        settings,
        whole_recipe(recipe),
        folders=RunFolders(home, home / "quantize"),
        out=home / settings.name,
        default_weights=weights,
    )
    note(f"{folder} is written; try: secondpass inspect {folder}")
