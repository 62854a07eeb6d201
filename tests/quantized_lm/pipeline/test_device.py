"""Training away from the CPU: no tensor stays behind. Needs no GPU: "meta" is a device too."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from quantized_lm.models.transformer import Transformer
from quantized_lm.pipeline.batches import Windows
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.loop import Objective
from quantized_lm.pipeline.optimizer import is_matrix, make_optimizers
from quantized_lm.pipeline.quantize import load_teacher, make_student, optimizers_of, task_loss
from quantized_lm.pipeline.train import make_model, make_packer, next_token_loss
from tests.conftest import TinyRun

ELSEWHERE = "meta"  # shapes, types and no values; an operation on it and on the CPU fails


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none for that device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def windows_of(run: TinyRun) -> Windows:
    corpus = open_corpus(run.recipe.corpus, run.out / "corpus")
    return make_packer(run.recipe, corpus, seed=1).batch(4)


def update(
    objective: Objective, windows: Windows, model: nn.Module, optimizers: list[Optimizer]
) -> None:
    loss = objective(windows)
    assert loss.device.type == ELSEWHERE
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [p for one in optimizers for group in one.param_groups for p in group["params"]]
    assert {p.grad.device.type for p in trained if p.grad is not None} == {ELSEWHERE}
    for optimizer in optimizers:
        optimizer.step()
    assert {part.device.type for part in model.state_dict().values()} == {ELSEWHERE}


def test_an_update_of_the_float_model(tiny_run: TinyRun) -> None:
    model = make_model(tiny_run.recipe).to(ELSEWHERE).train()
    model.set_dropout(0.2)
    named = list(model.named_parameters())
    optimizers = make_optimizers(
        [p for n, p in named if is_matrix(n, p)],
        [p for n, p in named if not is_matrix(n, p)],
        matrix_lr=0.01,
        other_lr=0.01,
        weight_decay=0.01,
    )
    update(next_token_loss(model, compiled=False), windows_of(tiny_run), model, optimizers)


@pytest.mark.parametrize("method", ["learned", "rated", "admm", "sawb"])
def test_an_update_of_a_student(method: str, tiny_run: TinyRun) -> None:
    settings = {"bits": 2.0} if method == "rated" else {}
    plan = replace(tiny_run.recipe.quantize, method=method, settings=settings)
    recipe = replace(tiny_run.recipe, quantize=plan)
    teacher = load_teacher(recipe, tiny_run.out)
    student = make_student(recipe, teacher).to(ELSEWHERE).train()
    objective = task_loss(student, teacher.to(ELSEWHERE), kl_weight=0.9, compiled=False)
    update(objective, windows_of(tiny_run), student, optimizers_of(plan, student))


def test_a_tensor_that_stays_behind_is_found(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def positions(_: Transformer, visible: torch.Tensor) -> torch.Tensor:
        return torch.arange(visible.shape[-1])

    monkeypatch.setattr(Transformer, "_window_positions", positions)
    model = make_model(tiny_run.recipe).to(ELSEWHERE)
    with pytest.raises(RuntimeError, match="device"):
        next_token_loss(model, compiled=False)(windows_of(tiny_run))
