"""Run folders that hold a float model of every architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quantized_lm.pipeline.corpus import prepare_corpus
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.train import make_model
from tests.runs import leave_trained
from tests.tiny import tiny_recipe, write_text

SIZES: dict[str, dict[str, Any]] = {
    "transformer": {"model_dim": 32, "num_heads": 2, "ffn_dim": 48},
    "lstm": {"model_dim": 32},
}


@dataclass(frozen=True)
class FloatRun:
    """What the train stage leaves behind."""

    recipe: Recipe
    folder: Path


def float_run(architecture: str, folder: Path) -> FloatRun:
    """Random weights; nothing is trained."""
    model = {"vocab_size": 64, "num_layers": 2, "max_tokens": 96, **SIZES[architecture]}
    recipe = replace(tiny_recipe(), architecture=architecture, model=model)
    write_text(folder, lines=400)
    prepare_corpus(recipe.corpus, data=folder, out=folder / "corpus")
    floats = make_model(recipe)
    floats.initialize(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in floats.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    leave_trained(folder, recipe, floats)
    return FloatRun(recipe, folder)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """More of them only get in each other's way over so few weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=SIZES)
def any_float_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> FloatRun:
    """A run of each architecture. Not to be changed."""
    return float_run(request.param, tmp_path_factory.mktemp(request.param))
