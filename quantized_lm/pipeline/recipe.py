"""A recipe: everything that decides what a model becomes, as one frozen value read from YAML.

Unknown fields are refused: a typo in a learning rate must not train a model for hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quantized_lm.errors import RecipeError
from quantized_lm.records import build


@dataclass(frozen=True)
class CorpusRecipe:
    """Which text, how it is split and how lines become training documents.

    Attributes:
        train: gzip text files, one sentence per line, relative to the data folder.
        held_out: the one of them whose last lines are kept for dev and test.
        dev_lines, test_lines: how many; test is the very end.
        vocab_size: BPE pieces, the boundary and unknown symbols included.
        vocab_from: the files the BPE is learned from.
        merge: probability that a line continues the one before it in one segment.
        context: probability that a segment sees the one before it as context.
    """

    train: tuple[str, ...]
    held_out: str
    dev_lines: int
    test_lines: int
    vocab_size: int
    vocab_from: tuple[str, ...]
    merge: float = 0.0
    context: float = 0.0


@dataclass(frozen=True)
class TrainRecipe:
    """How the float model is trained: warm-up, stable, linear decay to zero.

    Attributes:
        window: tokens per packed window. batch_windows: windows per step.
        matrix_lr: Muon's, for the weight matrices. other_lr: AdamW's, for the rest.
        decay_share: share of the steps over which the rate falls linearly to zero.
        eval_every: steps between measurements on dev.
        compile: fuse the training step with torch.compile (needs a C++ compiler).
    """

    steps: int
    window: int
    batch_windows: int
    matrix_lr: float
    other_lr: float
    weight_decay: float = 0.0
    warmup_steps: int = 50
    decay_share: float = 0.5
    eval_every: int = 250
    compile: bool = True


@dataclass(frozen=True)
class QuantizeRecipe:
    """How the float teacher becomes a packed student: distillation with quantizers in the loop.

    Attributes:
        formats: packed format by tensor name pattern (fnmatch), first match wins.
        kl_weight: weight of KL(teacher || student); the rest is cross entropy on the text.
    """

    steps: int
    batch_windows: int
    matrix_lr: float
    other_lr: float
    formats: dict[str, str]
    scale_lr: float = 0.001
    kl_weight: float = 0.9
    warmup_steps: int = 20
    eval_every: int = 100


@dataclass(frozen=True)
class Recipe:
    """One model from text to artifact."""

    name: str
    seed: int
    architecture: str
    model: dict[str, Any]
    corpus: CorpusRecipe
    train: TrainRecipe
    quantize: QuantizeRecipe
    license: str
    training_data: str


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: unreadable file, unknown or missing field, wrong type; names the field.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from None
    return build(Recipe, value, where=path.name, error=RecipeError)
