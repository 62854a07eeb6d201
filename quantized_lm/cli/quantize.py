"""`secondpass quantize`: float teacher to packed student, resumable."""

from __future__ import annotations

from pathlib import Path

from quantized_lm.cli.console import command, note
from quantized_lm.cli.devices import TrainingDeviceOption, require_training_device
from quantized_lm.cli.train import CheckpointOption, RecipeArgument, RunOption
from quantized_lm.pipeline.lock import only_one
from quantized_lm.pipeline.loop import CHECKPOINT_EVERY_S
from quantized_lm.pipeline.quantize import quantize
from quantized_lm.pipeline.recipe import load_recipe


@command
def run(
    recipe: RecipeArgument,
    run: RunOption = None,
    checkpoint_every: CheckpointOption = CHECKPOINT_EVERY_S,
    device: TrainingDeviceOption = "cpu",
) -> None:
    """Distill the trained float model into one whose matrices are packed.

    Needs what `secondpass train` left in the run's folder. Kill it and call it again: it goes on.

    secondpass quantize quantized_lm/recipes/en-small.yaml
    """
    require_training_device(device)
    settings = load_recipe(recipe)
    folder = run or Path("runs") / settings.name
    with only_one(folder):
        weights = quantize(
            settings,
            run=folder,
            out=folder / "quantize",
            checkpoint_every_s=checkpoint_every,
            device=device,
        )
    note(f"{weights} is quantized; next: secondpass export {recipe}")
