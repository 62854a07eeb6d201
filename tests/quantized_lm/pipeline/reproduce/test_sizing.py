from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from quantized_lm.errors import InputError, RecipeError
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.reproduce.plan import make_plan
from quantized_lm.pipeline.reproduce.sizing import (
    code_bits,
    float_bytes_of,
    num_parameters,
    widest_within,
    with_width,
)
from quantized_lm.pipeline.train import make_model

from .conftest import tiny_task


@pytest.fixture(params=["transformer", "lstm"])
def recipe(request: pytest.FixtureRequest, text: Path) -> Recipe:
    plan = make_plan(tiny_task(), size="small", data=text)
    return plan.benches[request.param].teacher.recipe


def test_float_bytes_are_those_of_the_file(recipe: Recipe) -> None:
    model = make_model(recipe)
    arrays = {name: part.detach().numpy() for name, part in model.named_parameters()}
    assert float_bytes_of(recipe) == len(safetensors.numpy.save(arrays))
    assert num_parameters(recipe) == sum(array.size for array in arrays.values())


def test_the_widest_model_fits_and_the_next_width_does_not(recipe: Recipe) -> None:
    for budget in (float_bytes_of(recipe) // 16, float_bytes_of(recipe), 123_456):
        chosen = widest_within(recipe, budget)
        width = next(w for w in range(1, 999) if with_width(recipe, w).model == chosen.model)
        assert float_bytes_of(chosen) <= budget
        assert float_bytes_of(with_width(recipe, width + 1)) > budget


def test_a_narrower_model_keeps_its_depth_and_can_be_made(recipe: Recipe) -> None:
    for width in range(1, 40):
        narrow = with_width(recipe, width)
        assert narrow.model["num_layers"] == recipe.model["num_layers"]
        make_model(narrow)  # head widths must be even


def test_no_width_for_too_few_bytes_or_an_unknown_architecture(recipe: Recipe) -> None:
    with pytest.raises(InputError, match="the narrowest .* takes .* need at most 100"):
        widest_within(recipe, 100)
    with pytest.raises(RecipeError, match="no widths are known of 'gpt2'; known are"):
        widest_within(replace(recipe, architecture="gpt2"), 10_000)


def test_code_bits_are_what_a_budget_leaves(recipe: Recipe) -> None:
    model = make_model(recipe)
    matrices = [part for part in model.parameters() if part.ndim == 2]
    others = {name: part for name, part in model.named_parameters() if part.ndim != 2}
    unpacked = len(
        safetensors.numpy.save({name: np.zeros(part.shape, "f4") for name, part in others.items()})
    )
    bits = code_bits(recipe, 10_000, scale_bits=16)
    weights, rows = sum(part.numel() for part in matrices), sum(len(part) for part in matrices)
    assert bits * weights / 8 + 2 * rows + unpacked == pytest.approx(10_000)
    with pytest.raises(InputError, match="leave -.* bits per weight"):
        code_bits(recipe, unpacked, scale_bits=16)
