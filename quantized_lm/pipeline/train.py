"""Train stage: corpus -> float checkpoint. Resumes exactly where the last checkpoint stood."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from quantized_lm.errors import RecipeError
from quantized_lm.models import ARCHITECTURES
from quantized_lm.models.transformer import Transformer
from quantized_lm.pipeline.batches import IGNORED, WindowPacker, Windows, isolated_lines
from quantized_lm.pipeline.checkpoint import (
    Progress,
    Training,
    load_checkpoint,
    save_checkpoint,
    write_history,
)
from quantized_lm.pipeline.corpus import Corpus, prepare_corpus
from quantized_lm.pipeline.optimizer import is_matrix, make_optimizers, rate_factor, set_rate
from quantized_lm.pipeline.progress import progress_bar
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.records import build

CHECKPOINT_EVERY_S = 120.0  # what a kill may cost
EVAL_WINDOWS = 32
Objective = Callable[[Windows], Tensor]


@dataclass(frozen=True)
class Objectives:
    """What a stage minimizes, and the nats per token it is measured by."""

    train: Objective
    nll: Objective


@dataclass(frozen=True)
class LoopPlan:
    """What the shared loop needs to know of a stage.

    Attributes:
        key: names what a checkpoint must have been made by to be continued.
        checkpoint_every_s: seconds of work a kill may cost.
    """

    title: str
    window: int
    steps: int
    batch_windows: int
    warmup_steps: int
    decay_share: float
    eval_every: int
    out: Path
    key: str
    checkpoint_every_s: float


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


def make_model(recipe: Recipe) -> Transformer:
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


def run_loop(
    training: Training,
    plan: LoopPlan,
    packer: WindowPacker,
    corpus: Corpus,
    objectives: Objectives,
) -> None:
    """Update until the plan's last step: schedule, measurements, checkpoints, progress bar."""
    plan.out.mkdir(parents=True, exist_ok=True)
    path = plan.out / "checkpoint.pt"
    progress = training.progress
    if path.exists():
        packer.resume(load_checkpoint(path, training, key=plan.key))
    saved_at = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task(plan.title, total=plan.steps, completed=progress.step, status="")
        while progress.step < plan.steps:
            started = time.monotonic()
            loss = _update(training, plan, packer.batch(plan.batch_windows), objectives.train)
            progress.seconds += time.monotonic() - started
            last = progress.step == plan.steps
            if last or progress.step % plan.eval_every == 0:
                nll = mean_nll(objectives.nll, corpus.tokens("dev"), window=plan.window)
                _measure(progress, corpus, nll, loss)
                write_history(plan.out / "history.jsonl", progress)
            if last or time.monotonic() - saved_at >= plan.checkpoint_every_s:
                save_checkpoint(path, training, packer.state, key=plan.key)
                saved_at = time.monotonic()
            bar.update(task, completed=progress.step, status=f"loss {loss:.3f}")


def _update(
    training: Training,
    plan: LoopPlan,
    windows: Windows,
    objective: Objective,
) -> float:
    """One optimizer step; returns the loss it was made on."""
    progress = training.progress
    set_rate(
        training.optimizers,
        rate_factor(
            progress.step,
            steps=plan.steps,
            warmup_steps=plan.warmup_steps,
            decay_share=plan.decay_share,
        ),
    )
    loss = objective(windows)
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    progress.step += 1
    progress.tokens += windows.num_tokens
    return loss.item()


def next_token_loss(model: Transformer, *, compiled: bool) -> Objective:
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


def as_objective(loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, compiled: bool) -> Objective:
    """Let a loss over tensors (inputs, document, targets) take windows."""
    run = torch.compile(loss, dynamic=False) if compiled else loss

    def objective(windows: Windows) -> Tensor:
        return run(
            torch.from_numpy(windows.inputs),
            torch.from_numpy(windows.document),
            torch.from_numpy(windows.targets),
        )

    return objective


@torch.no_grad()
def mean_nll(objective: Objective, tokens: NDArray[np.uint16], *, window: int) -> float:
    """Nats per token over a shard, each line alone, its final boundary counted."""
    total = count = 0.0
    for windows in isolated_lines(tokens, window=window, batch_windows=EVAL_WINDOWS):
        total += objective(windows).item() * windows.num_tokens
        count += windows.num_tokens
    return total / count


def _measure(progress: Progress, corpus: Corpus, dev_nll: float, train_loss: float) -> None:
    tokens, words = len(corpus.tokens("dev")), corpus.words["dev"]
    progress.history.append(
        {
            "step": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            "train_loss": round(train_loss, 4),
            "dev_nll": round(dev_nll, 4),
            "dev_word_perplexity": round(math.exp(dev_nll * tokens / words), 2),
        }
    )
