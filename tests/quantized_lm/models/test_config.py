"""What configs say of their parameters is what the torch modules have."""

from __future__ import annotations

from quantized_lm.models.config import is_packed
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names


def test_shapes_are_those_of_the_modules_parameters(model: FloatModel) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert model.config.shapes() == expected
    assert list(model.config.shapes()) == list(expected)


def test_what_is_packed_are_the_projections_and_the_embedding(model: FloatModel) -> None:
    shapes = model.config.shapes()
    assert [name for name, shape in shapes.items() if is_packed(name, shape)] == matrix_names(model)
