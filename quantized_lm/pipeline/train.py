"""Train stage: corpus -> float checkpoint. Resumes exactly where the last checkpoint stood."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from quantized_lm.errors import RecipeError
from quantized_lm.models import ARCHITECTURES
from quantized_lm.models.tree_transformer import TreeTransformer
from quantized_lm.pipeline.batches import IGNORED, WindowPacker
from quantized_lm.pipeline.checkpoint import Progress, Training
from quantized_lm.pipeline.corpus import Corpus, prepare_corpus
from quantized_lm.pipeline.loop import (
    CHECKPOINT_EVERY_S,
    LoopPlan,
    Objective,
    Objectives,
    as_objective,
    run_loop,
)
from quantized_lm.pipeline.optimizer import is_matrix, make_optimizers
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.records import build


def train(
    recipe: Recipe, *, data: Path, out: Path, checkpoint_every_s: float = CHECKPOINT_EVERY_S
) -> Path:
    """Run the stage; returns the checkpoint. Calling again continues, or returns at once if done.

    Raises:
        DataError: text missing, or `out` holds another recipe's checkpoint.
        RecipeError: the model's sizes are not those of its architecture.
    """
    corpus = prepare_corpus(recipe.corpus, data=data, out=out / "corpus")
    model = make_model(recipe)
    model.initialize(recipe.seed)
    plan = recipe.train
    named = list(model.named_parameters())
    optimizers = make_optimizers(
        [p for n, p in named if is_matrix(n, p)],
        [p for n, p in named if not is_matrix(n, p)],
        matrix_lr=plan.matrix_lr,
        other_lr=plan.other_lr,
        weight_decay=plan.weight_decay,
    )
    loop = LoopPlan(
        title=f"train {recipe.name}",
        window=plan.window,
        steps=plan.steps,
        batch_windows=plan.batch_windows,
        warmup_steps=plan.warmup_steps,
        decay_share=plan.decay_share,
        eval_every=plan.eval_every,
        out=out / "train",
        key=recipe_key(recipe),
        checkpoint_every_s=checkpoint_every_s,
    )
    training = Training(model, optimizers, Progress())
    loss = next_token_loss(model, compiled=plan.compile)
    run_loop(training, loop, make_packer(recipe, corpus), corpus, Objectives(loss, loss))
    return loop.out / "checkpoint.pt"


def make_model(recipe: Recipe) -> TreeTransformer:
    """An uninitialized float model of the recipe's architecture and sizes.

    Raises:
        RecipeError: no such architecture, or sizes that are not its.
    """
    if recipe.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise RecipeError(f"architecture is {recipe.architecture!r}; need one of {known}")
    config_class, model_class = ARCHITECTURES[recipe.architecture]
    config = build(config_class, recipe.model, where=f"{recipe.name}: model", error=RecipeError)
    if config.vocab_size != recipe.corpus.vocab_size:
        raise RecipeError(
            f"model: vocab_size is {config.vocab_size}; need {recipe.corpus.vocab_size} as corpus"
        )
    return model_class(config)


def make_packer(recipe: Recipe, corpus: Corpus) -> WindowPacker:
    """Packed training windows as the recipe asks for them."""
    return WindowPacker(
        corpus.tokens("train"),
        window=recipe.train.window,
        merge=recipe.corpus.merge,
        context=recipe.corpus.context,
        seed=recipe.seed,
    )


def recipe_key(recipe: Recipe) -> str:
    """Names what must not change between a checkpoint and its continuation.

    The number of steps may: more steps, or a decay that starts later, continue the same run.
    """
    fixed = asdict(recipe)
    del fixed["quantize"]
    for free in ("steps", "decay_share", "eval_every", "compile"):
        del fixed["train"][free]
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def next_token_loss(model: TreeTransformer, *, compiled: bool) -> Objective:
    """Mean cross entropy of windows in nats per token, in bfloat16 with float32 sums.

    Args:
        compiled: fuse it with torch.compile: twice as fast, half a minute to start.
    """

    def loss(inputs: Tensor, document: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model.embedding.logits(model(inputs, document))
        return functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )

    return as_objective(loss, compiled=compiled)
