"""Save and restore a stage's whole training state: a kill loses minutes and no exactness."""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from quantized_lm.errors import DataError
from quantized_lm.files import write_atomic
from quantized_lm.pipeline.batches import PackingState


@dataclass
class Progress:
    """How far a training stage is.

    Attributes:
        step: updates made. tokens: targets seen. seconds: time spent training, over all runs.
        history: one row per measurement: step, tokens, seconds, losses in nats per token.
        best_step, best_nll: of the measurement on dev whose weights were kept.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_nll: float = math.inf


@dataclass(frozen=True)
class Training:
    """Everything that changes while a stage trains, besides the packer.

    Attributes:
        after_update: told after each update which share of the planned ones is made.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    progress: Progress
    after_update: Callable[[float], None] = lambda _share: None


def save_checkpoint(path: Path, training: Training, packing: PackingState, *, key: str) -> None:
    """Write the state in one piece; `key` names the recipe it belongs to."""
    _write(
        path,
        {
            "key": key,
            "model": training.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in training.optimizers],
            "progress": asdict(training.progress),
            "packing": asdict(packing),
        },
    )


def save_weights(path: Path, model: nn.Module, *, key: str) -> None:
    """Write a model's state alone; `key` names the recipe it belongs to."""
    _write(path, {"key": key, "model": model.state_dict()})


def load_checkpoint(path: Path, training: Training, *, key: str) -> PackingState:
    """Restore in place; returns where the packer stood.

    Raises:
        DataError: the file is damaged or belongs to another recipe.
    """
    saved = _read(path)
    _require_key(path, saved, key)
    training.model.load_state_dict(saved["model"])
    for optimizer, state in zip(training.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    for name, value in saved["progress"].items():
        setattr(training.progress, name, value)
    return PackingState(**saved["packing"])


def require_continues(path: Path, *, key: str) -> None:
    """Refuse a checkpoint that cannot be gone on from, before anything beside it is replaced.

    Raises:
        DataError: there is one, and it is damaged or belongs to another recipe.
    """
    if path.exists():
        _require_key(path, _read(path), key)


def load_weights(path: Path, *, key: str | None = None) -> dict[str, Tensor]:
    """A model's state out of what `save_weights` or `save_checkpoint` wrote.

    Args:
        key: what it has to belong to; None takes any.

    Raises:
        DataError: missing, damaged or of another recipe.
    """
    saved = _read(path)
    if key is not None:
        _require_key(path, saved, key)
    weights: dict[str, Tensor] = saved["model"]
    return weights


def write_history(path: Path, progress: Progress) -> None:
    """The learning curve as JSON lines."""
    rows = "".join(json.dumps(row) + "\n" for row in progress.history)
    write_atomic(path, rows.encode())


def read_history(path: Path) -> list[dict[str, float]]:
    """The reverse.

    Raises:
        DataError: no such file.
    """
    try:
        return [json.loads(row) for row in path.read_text().splitlines()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _require_key(path: Path, saved: dict[str, Any], key: str) -> None:
    if saved.get("key") != key:  # weights of earlier versions have none
        raise DataError(
            f"{path} was made by another recipe or from other text; go back to that, delete "
            f"{path.parent} to begin it anew, or name another run's folder with --run (to keep two "
            "students of one model, a copy of this one)"
        )


def _write(path: Path, state: dict[str, Any]) -> None:
    content = io.BytesIO()
    torch.save(state, content)
    write_atomic(path, content.getvalue())


def _read(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path}: no readable checkpoint ({type(error).__name__}); delete it and train again"
        ) from None
    return saved
