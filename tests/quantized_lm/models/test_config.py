"""What configs say of their parameters is what the torch modules have."""

from __future__ import annotations

import dataclasses
import math

import pytest

from quantized_lm.errors import ShapeError
from quantized_lm.models.config import MAX_TOKENS, is_packed
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.gpt2_config import Gpt2Config
from quantized_lm.models.layers import matrix_names
from quantized_lm.models.transformer_config import TransformerConfig


def test_shapes_are_those_of_the_modules_parameters(model: FloatModel) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert model.config.shapes() == expected
    assert list(model.config.shapes()) == list(expected)


def test_what_is_packed_are_the_projections_and_the_embedding(model: FloatModel) -> None:
    shapes = model.config.shapes()
    assert [name for name, shape in shapes.items() if is_packed(name, shape)] == matrix_names(model)


def test_sizes_that_no_model_has_are_refused(model: FloatModel) -> None:
    for field in dataclasses.fields(model.config):  # type: ignore[arg-type]
        if field.type == "int":
            with pytest.raises(ShapeError, match=f"{field.name} is -1; need"):
                dataclasses.replace(model.config, **{field.name: -1})  # type: ignore[type-var]
    with pytest.raises(ShapeError, match="max_tokens is 65537; need at most 65536"):
        dataclasses.replace(model.config, max_tokens=MAX_TOKENS + 1)  # type: ignore[type-var]


@pytest.mark.parametrize("odd", [math.nan, math.inf, 0.0, -3.0])
def test_numbers_that_only_make_nan_are_refused(odd: float) -> None:
    with pytest.raises(ShapeError, match="rope_base is .*; need a finite"):
        TransformerConfig(8, 1, 16, 2, 8, 8, rope_base=odd)
    with pytest.raises(ShapeError, match="norm_epsilon is .*; need more than 0"):
        Gpt2Config(8, 1, 16, 2, 8, 8, norm_epsilon=odd)
