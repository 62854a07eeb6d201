"""The loop both training stages share: updates, measurements, checkpoints, progress bar."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.batches import WindowPacker, Windows, held_out_windows
from quantized_lm.pipeline.checkpoint import (
    Progress,
    Training,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    write_history,
)
from quantized_lm.pipeline.corpus import Corpus
from quantized_lm.pipeline.optimizer import rate_factor, set_rate
from quantized_lm.pipeline.progress import progress_bar

CHECKPOINT_EVERY_S = 120.0  # what a kill may cost
DIVERGED_NATS = 3.0  # per token above the best measurement: no schedule gets that back
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
        seed: of what is drawn in an update, such as dropout.
        continuous: as in `CorpusRecipe`.
        clip_norm, extra_gradient: as in `QuantizeRecipe`.
        restarts, kept_steps: as in `TrainRecipe`.
        key: names what a checkpoint must have been made by to be continued.
        checkpoint_every_s: seconds of work a kill may cost.
        measures_first: whether the learning curve has the weights before the first update.
    """

    title: str
    seed: int
    window: int
    continuous: bool
    steps: int
    batch_windows: int
    warmup_steps: int
    decay_share: float
    clip_norm: float
    eval_every: int
    out: Path
    key: str
    checkpoint_every_s: float
    extra_gradient: bool = False
    restarts: tuple[int, ...] = ()
    kept_steps: Collection[int] = ()
    measures_first: bool = False

    @property
    def weights(self) -> Path:
        """Where the weights that measured best on dev are kept."""
        return self.out / "weights.pt"


def run_loop(
    training: Training,
    plan: LoopPlan,
    packer: WindowPacker,
    corpus: Corpus,
    objectives: Objectives,
) -> None:
    """Update until the plan's last step; goes on from the plan's checkpoint if there is one.

    The weights that measure best on dev are kept in `plan.weights`. Without steps the model is
    only measured.

    Raises:
        DataError: the checkpoint is damaged or belongs to another recipe.
        RecipeError: the checkpoint is past the last step, or training diverged; then the best
            weights and the last checkpoint stay.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    path = plan.out / "checkpoint.pt"
    progress = training.progress
    if path.exists():
        packer.resume(load_checkpoint(path, training, key=plan.key))
        if progress.step > plan.steps:
            raise RecipeError(
                f"{plan.title}: steps is {plan.steps}, but {path} has made {progress.step}; need "
                "at least as many, or a new folder (--run)"
            )
    saved_at = time.monotonic()
    loss: float | None = None
    if plan.measures_first and plan.steps and not progress.history:
        _measure(training, plan, corpus, objectives.nll, loss)
    with progress_bar() as bar:
        task = bar.add_task(plan.title, total=plan.steps, completed=progress.step, status="")
        while progress.step < plan.steps or not progress.history:
            if plan.steps:
                started = time.monotonic()
                loss = _update(training, plan, packer.batch(plan.batch_windows), objectives.train)
                progress.seconds += time.monotonic() - started
            is_kept = progress.step in plan.kept_steps
            if is_kept:
                kept = kept_weights(plan.out, progress.step)
                save_weights(kept, training.model, key=plan.key)
            last = progress.step == plan.steps
            if last or progress.step % plan.eval_every == 0 or is_kept:
                _measure(training, plan, corpus, objectives.nll, loss)
            if last or time.monotonic() - saved_at >= plan.checkpoint_every_s:
                save_checkpoint(path, training, packer.state, key=plan.key)
                saved_at = time.monotonic()
            bar.update(task, completed=progress.step, status=_status(progress, loss))


def kept_weights(out: Path, step: int) -> Path:
    """Where the weights after an update are, if they are kept."""
    return out / f"weights-{step}.pt"


def _status(progress: Progress, loss: float | None) -> str:
    """What stands beside the bar."""
    parts = [] if loss is None else [f"loss {loss:.3f}"]
    if progress.history:
        parts.append(f"best dev {progress.best_nll:.4f}")
    return ", ".join(parts)


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
            restarts=plan.restarts,
        ),
    )
    training.model.train()
    loss = _gradient(training, plan, windows, objective)
    if plan.extra_gradient:
        before = [parameter.detach().clone() for parameter in training.model.parameters()]
        _step(training)
        _gradient(training, plan, windows, objective)
        with torch.no_grad():
            for parameter, value in zip(training.model.parameters(), before, strict=True):
                parameter.copy_(value)
    _step(training)
    progress.step += 1
    progress.tokens += windows.num_tokens
    with torch.no_grad():
        training.after_update(progress.step / plan.steps)
    return loss


def _gradient(training: Training, plan: LoopPlan, windows: Windows, objective: Objective) -> float:
    """Fill in the gradients; what is drawn depends on seed and step alone."""
    torch.manual_seed(plan.seed * 1_000_003 + training.progress.step)
    loss = objective(windows)
    if not math.isfinite(loss.item()):
        raise _diverged(plan, training.progress, f"the loss is {loss.item()}")
    loss.backward()  # type: ignore[no-untyped-call]
    if plan.clip_norm:
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), plan.clip_norm)
    return loss.item()


def _step(training: Training) -> None:
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad()


def _diverged(plan: LoopPlan, progress: Progress, what: str) -> RecipeError:
    kept = (
        f"the weights of step {progress.best_step} (dev {progress.best_nll:.4f} nats) are kept in "
        f"{plan.weights}; "
        if progress.best_step
        else ""
    )
    return RecipeError(
        f"{plan.title} diverged at step {progress.step}: {what}; {kept}lower matrix_lr or other_lr"
    )


def as_objective(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, device: torch.device, compiled: bool
) -> Objective:
    """Let a loss over tensors (inputs, document, targets) on a device take windows."""
    run = torch.compile(loss, dynamic=False) if compiled else loss

    def objective(windows: Windows) -> Tensor:
        with warnings.catch_warnings():
            # The compiler's word on float16 scales beside bfloat16 products, which are meant.
            warnings.filterwarnings("ignore", message="bf16 and fp16 are mixed")
            return run(
                torch.from_numpy(windows.inputs).to(device),
                torch.from_numpy(windows.document).to(device),
                torch.from_numpy(windows.targets).to(device),
            )

    return objective


@torch.no_grad()
def mean_nll(
    objective: Objective,
    tokens: NDArray[np.uint16],
    *,
    window: int,
    batch_windows: int = 16,
    continuous: bool = False,
) -> float:
    """Nats per token over a shard, each line alone or, of a running text, as windows hold it."""
    total = count = 0.0
    for windows in held_out_windows(
        tokens, window=window, batch_windows=batch_windows, continuous=continuous
    ):
        total += objective(windows).item() * windows.num_tokens
        count += windows.num_tokens
    return total / count


def _measure(
    training: Training, plan: LoopPlan, corpus: Corpus, nll: Objective, loss: float | None
) -> None:
    """Add a row to the learning curve; keep the weights if none measured better."""
    progress = training.progress
    tokens, words = corpus.tokens("dev"), corpus.words["dev"]
    training.model.eval()
    dev_nll = mean_nll(
        nll,
        tokens,
        window=plan.window,
        batch_windows=plan.batch_windows,  # the shape that is compiled
        continuous=plan.continuous,
    )
    if not dev_nll <= progress.best_nll + DIVERGED_NATS:
        raise _diverged(plan, progress, f"dev is at {dev_nll:.3f} nats per token")
    progress.history.append(
        {
            "step": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            **({} if loss is None else {"train_loss": round(loss, 4)}),
            "dev_nll": round(dev_nll, 4),
            "dev_word_perplexity": round(math.exp(dev_nll * len(tokens) / words), 2),
        }
    )
    if dev_nll <= progress.best_nll:
        progress.best_step, progress.best_nll = progress.step, dev_nll
        save_weights(plan.weights, training.model, key=plan.key)
    write_history(plan.out / "history.jsonl", progress)
