"""A made-up language and a recipe small enough to go through every stage in seconds."""

from __future__ import annotations

import gzip
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantized_lm.pipeline.recipe import CorpusRecipe, QuantizeRecipe, Recipe, TrainRecipe

NOUNS = ("cat", "dog", "king", "queen", "train", "river", "letter", "window")
VERBS = ("sees", "finds", "follows", "likes", "carries")
PLACES = ("by the river", "in the garden", "at night", "")


def sentence(rng: random.Random) -> str:
    """One line of the language."""
    text = f"the {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}"
    return f"{text} {rng.choice(PLACES)}".strip()


def write_text(folder: Path, lines: int = 1200) -> None:
    """The language as a gzip file, the same every time."""
    rng = random.Random(7)
    with gzip.open(folder / "tiny.txt.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(sentence(rng) + "\n" for _ in range(lines))


def tiny_recipe(**train: Any) -> Recipe:
    """Every stage, tens of steps."""
    recipe = Recipe(
        name="tiny",
        seed=3,
        architecture="transformer",
        model={
            "vocab_size": 64,
            "num_layers": 2,
            "model_dim": 32,
            "num_heads": 2,
            "ffn_dim": 64,
            "max_tokens": 96,
        },
        corpus=CorpusRecipe(
            train=("tiny.txt.gz",),
            held_out="tiny.txt.gz",
            dev_lines=40,
            test_lines=60,
            vocab_size=64,
            vocab_from=("tiny.txt.gz",),
            merge=0.2,
            context=0.2,
        ),
        train=TrainRecipe(
            steps=60,
            window=48,
            batch_windows=8,
            matrix_lr=0.02,
            other_lr=0.01,
            warmup_steps=4,
            eval_every=30,
            compile=False,
        ),
        quantize=QuantizeRecipe(
            steps=20,
            batch_windows=8,
            matrix_lr=0.005,
            other_lr=0.002,
            formats={"blocks.0.out*": "2bit", "*": "4bit:normal"},
            eval_every=10,
        ),
        license="none",
        training_data="made up",
    )
    return replace(recipe, train=replace(recipe.train, **train))


TINY_YAML = """
name: tiny
seed: 3
architecture: transformer
license: none
training_data: made up
model: {vocab_size: 64, num_layers: 1, model_dim: 16, num_heads: 2, ffn_dim: 32, max_tokens: 48}
corpus:
  train: [tiny.txt.gz]
  held_out: tiny.txt.gz
  dev_lines: 20
  test_lines: 20
  vocab_size: 64
  vocab_from: [tiny.txt.gz]
train: {steps: 150, window: 48, batch_windows: 2, matrix_lr: 0.02, other_lr: 0.01, compile: false}
quantize:
  {steps: 100, batch_windows: 2, matrix_lr: 0.005, other_lr: 0.002, formats: {"*": "4bit:normal"}}
"""
