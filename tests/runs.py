"""Run folders as the stages leave them, without the training."""

from __future__ import annotations

from pathlib import Path

from quantized_lm.models.float_model import FloatModel
from quantized_lm.pipeline.checkpoint import save_weights
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.train import recipe_key


def leave_trained(folder: Path, recipe: Recipe, model: FloatModel) -> None:
    """Weights that the train stage might have come to; the corpus is prepared."""
    key = recipe_key(recipe, open_corpus(recipe.corpus, folder / "corpus").key)
    (folder / "train").mkdir(exist_ok=True)
    save_weights(folder / "train" / "weights.pt", model, key=key)
    (folder / "train" / "history.jsonl").write_text(f'{{"step": {recipe.train.steps}}}\n')
