"""The loop both training stages share: updates, measurements, checkpoints, progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.batches import WindowPacker, Windows, isolated_lines
from quantized_lm.pipeline.checkpoint import (
    Progress,
    Training,
    load_checkpoint,
    save_checkpoint,
    write_history,
)
from quantized_lm.pipeline.corpus import Corpus
from quantized_lm.pipeline.optimizer import rate_factor, set_rate
from quantized_lm.pipeline.progress import progress_bar

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


def run_loop(
    training: Training,
    plan: LoopPlan,
    packer: WindowPacker,
    corpus: Corpus,
    objectives: Objectives,
) -> None:
    """Update until the plan's last step; goes on from the plan's checkpoint if there is one.

    Raises:
        DataError: the checkpoint is damaged or belongs to another recipe.
        RecipeError: the loss is no number any more; the last checkpoint stays as it was.
    """
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
    if not math.isfinite(loss.item()):
        raise RecipeError(
            f"the loss is {loss.item()} at step {progress.step}; lower matrix_lr or other_lr"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    progress.step += 1
    progress.tokens += windows.num_tokens
    return loss.item()


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
