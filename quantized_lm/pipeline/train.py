"""Train stage: corpus -> float weights. Resumes exactly where the last checkpoint stood."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from quantized_lm.errors import RecipeError
from quantized_lm.models import ARCHITECTURES
from quantized_lm.models.float_model import FloatModel
from quantized_lm.pipeline.batches import IGNORED, Grouping, WindowPacker
from quantized_lm.pipeline.checkpoint import Progress, Training, require_continues
from quantized_lm.pipeline.corpus import Corpus, corpus_key, prepare_corpus
from quantized_lm.pipeline.loop import (
    CHECKPOINT_EVERY_S,
    LoopPlan,
    Objective,
    Objectives,
    as_objective,
    run_loop,
)
from quantized_lm.pipeline.optimizer import is_matrix, make_optimizers
from quantized_lm.pipeline.precision import mixed_precision
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.start import start_revision, start_weights
from quantized_lm.records import build, content_key


def train(
    recipe: Recipe,
    *,
    data: Path,
    out: Path,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    device: str = "cpu",
) -> Path:
    """Run the stage; returns the best weights. Calling again continues, or returns if done.

    Args:
        data: folder of the text. out: of the run.
        checkpoint_every_s: seconds of work a kill may cost.
        device: of torch; a checkpoint may go on on another, not bit for bit.

    Raises:
        DataError: text missing, or `out` holds the checkpoint of another recipe or other text,
            which is left as it is.
        RecipeError: the model's sizes are not those of its architecture, or of what it starts from.
        ArtifactError: what it starts from cannot be read.
    """
    start = start_weights(recipe)
    key = recipe_key(recipe, corpus_key(recipe.corpus, data=data))
    require_continues(out / "train" / "checkpoint.pt", key=key)
    corpus = prepare_corpus(recipe.corpus, data=data, out=out / "corpus")
    model = make_model(recipe)
    model.initialize(recipe.seed)
    if start:
        model.load_state_dict(start)
    model.to(device).set_dropout(recipe.train.dropout)
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
        seed=recipe.seed,
        window=plan.window,
        continuous=recipe.corpus.continuous,
        steps=plan.steps,
        batch_windows=plan.batch_windows,
        warmup_steps=plan.warmup_steps,
        decay_share=plan.decay_share,
        clip_norm=plan.clip_norm,
        eval_every=plan.eval_every,
        out=out / "train",
        key=key,
        checkpoint_every_s=checkpoint_every_s,
        restarts=plan.restarts,
        kept_steps=plan.kept_steps,
        measures_first=bool(start),
    )
    training = Training(model, optimizers, Progress())
    loss = next_token_loss(model, compiled=plan.compile)
    packer = make_packer(recipe, corpus, seed=recipe.seed)
    run_loop(training, loop, packer, corpus, Objectives(loss, loss))
    return loop.weights


def make_model(recipe: Recipe) -> FloatModel:
    """An uninitialized float model of the recipe's architecture and sizes.

    Raises:
        RecipeError: no such architecture, or sizes that are not its.
    """
    if recipe.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise RecipeError(f"architecture is {recipe.architecture!r}; need one of {known}")
    for name, value in recipe.model.items():
        if isinstance(value, int) and value < 1:
            raise RecipeError(f"model: {name} is {value}; need at least 1")
    config_class, model_class = ARCHITECTURES[recipe.architecture]
    config = build(config_class, recipe.model, where=f"{recipe.name}: model", error=RecipeError)
    if config.vocab_size != recipe.corpus.vocab_size:
        raise RecipeError(
            f"model: vocab_size is {config.vocab_size}; need {recipe.corpus.vocab_size} as corpus"
        )
    if recipe.train.window > config.max_tokens:
        raise RecipeError(
            f"train: window is {recipe.train.window}; need at most the model's max_tokens, "
            f"{config.max_tokens}"
        )
    return model_class(config)


def make_packer(recipe: Recipe, corpus: Corpus, *, seed: int) -> WindowPacker:
    """Packed training windows as the recipe asks for them."""
    return WindowPacker(
        corpus.tokens("train"),
        window=recipe.train.window,
        grouping=Grouping(recipe.corpus.merge, recipe.corpus.context, recipe.corpus.continuous),
        seed=seed,
    )


def recipe_key(recipe: Recipe, corpus: str) -> str:
    """Names what must not change between a checkpoint and its continuation.

    The number of steps may: more steps, a decay that starts later, or a restart at the end
    continue the same run.

    Args:
        corpus: key of the prepared text.
    """
    free = {
        "steps": 0,
        "decay_share": 0.0,
        "restarts": (),
        "eval_every": 1,
        "keep_every": 0,
        "compile": False,
    }
    revision = start_revision(recipe)
    return content_key(
        recipe.seed,
        recipe.architecture,
        recipe.model,
        corpus,
        replace(recipe.train, **free),  # type: ignore[arg-type]
        *([revision] if revision else []),
    )


def next_token_loss(model: FloatModel, *, compiled: bool) -> Objective:
    """Mean cross entropy of windows in nats per token, in mixed precision.

    Args:
        compiled: fuse it with torch.compile: twice as fast, half a minute to start.
    """
    run, device = model.runner(compiled=compiled), model.device
    precision = mixed_precision(device)

    def loss(inputs: Tensor, document: Tensor, targets: Tensor) -> Tensor:
        with precision:
            logits = model.embedding.logits(run(inputs, document))
        return functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )

    return as_objective(loss, device=device, compiled=compiled)
