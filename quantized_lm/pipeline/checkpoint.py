"""Save and restore a stage's whole training state: a kill loses minutes and no exactness."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
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
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Training:
    """Everything that changes while a stage trains, besides the packer."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    progress: Progress


def save_checkpoint(path: Path, training: Training, packing: PackingState, *, key: str) -> None:
    """Write the state in one piece; `key` names the recipe it belongs to."""
    content = io.BytesIO()
    torch.save(
        {
            "key": key,
            "model": training.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in training.optimizers],
            "progress": asdict(training.progress),
            "packing": asdict(packing),
        },
        content,
    )
    write_atomic(path, content.getvalue())


def load_checkpoint(path: Path, training: Training, *, key: str) -> PackingState:
    """Restore in place; returns where the packer stood.

    Raises:
        DataError: the file is damaged or belongs to another recipe.
    """
    saved = _read(path)
    if saved["key"] != key:
        raise DataError(
            f"{path} was made by another recipe; choose a new --out folder or delete this one"
        )
    training.model.load_state_dict(saved["model"])
    for optimizer, state in zip(training.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    for name, value in saved["progress"].items():
        setattr(training.progress, name, value)
    return PackingState(**saved["packing"])


def load_weights(path: Path) -> dict[str, Tensor]:
    """The model part of a checkpoint.

    Raises:
        DataError: missing or damaged.
    """
    weights: dict[str, Tensor] = _read(path)["model"]
    return weights


def write_history(path: Path, progress: Progress) -> None:
    """The learning curve as JSON lines."""
    rows = "".join(json.dumps(row) + "\n" for row in progress.history)
    write_atomic(path, rows.encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path}: no readable checkpoint ({type(error).__name__}); delete it and train again"
        ) from None
    return saved
