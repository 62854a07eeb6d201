"""`secondpass train`: text to a float model, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantized_lm.cli.console import command, note
from quantized_lm.cli.devices import TrainingDeviceOption, require_training_device
from quantized_lm.pipeline.batches import share_cut
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.lock import only_one
from quantized_lm.pipeline.loop import CHECKPOINT_EVERY_S
from quantized_lm.pipeline.recipe import load_recipe
from quantized_lm.pipeline.train import train

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="YAML recipe: sizes, data, steps, rates.")
]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="Folder of this run's files. [default: runs/NAME]"),
]
CheckpointOption = Annotated[
    float, typer.Option("--checkpoint-every", min=0.0, help="Seconds between checkpoints.")
]

_TOLD_CUT = 0.001


@command
def run(
    recipe: RecipeArgument,
    data: Annotated[
        Path, typer.Option(help="Folder that holds the recipe's text files (gzip, a line each).")
    ],
    run: RunOption = None,
    checkpoint_every: CheckpointOption = CHECKPOINT_EVERY_S,
    device: TrainingDeviceOption = "cpu",
) -> None:
    """Train the float teacher: tokenize the text once, then update until the last step.

    Kill it at any moment and call it again: it goes on from the last checkpoint and ends with the
    weights it would have had. More steps in the recipe, or a later decay, continue the same run.
    A recipe with `start: en-small`, or a model's folder, goes on from that model.

    secondpass train quantized_lm/recipes/en-small.yaml --data ~/text
    """
    require_training_device(device)
    settings = load_recipe(recipe)
    folder = run or Path("runs") / settings.name
    with only_one(folder):
        weights = train(
            settings, data=data, out=folder, checkpoint_every_s=checkpoint_every, device=device
        )
    window = settings.train.window
    cut = share_cut(open_corpus(settings.corpus, folder / "corpus").tokens("train"), window)
    if cut >= _TOLD_CUT:
        note(
            f"{100 * cut:.1f} % of the text stands past the first {window} tokens of its line, and "
            "was never trained on; let a line be a sentence, or raise `window`"
        )
    note(f"{weights} is trained; next: secondpass quantize {recipe}")
