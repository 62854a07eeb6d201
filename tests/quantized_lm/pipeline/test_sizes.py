from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantized_lm.errors import FormatError, RecipeError
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.sizes import coded_size_table, packed_size_bytes, size_table
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.storage import AUTO, float_bytes, weights_bytes

from .conftest import FloatRun

CHOICES = [f"{row.name}:{table}" for row in FORMATS.values() for table in row.level_tables]


def teacher_of(run: FloatRun) -> FloatModel:
    return load_teacher(run.recipe, run.folder)


def file_bytes(model: FloatModel, choice: str, coding: str) -> int:
    """Of the model's weights.safetensors with every matrix in one format."""
    arrays = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    grid = Grid.parse(choice)
    packed = {name: round_to_nearest(arrays.pop(name), grid) for name in matrix_names(model)}
    return weights_bytes(packed, arrays, coding)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("group_size", [None, 16])
def test_a_size_is_that_of_the_quantized_tensor(choice: str, group_size: int | None) -> None:
    grid = replace(Grid.parse(choice), group_size=group_size)
    for shape in ((1, 1), (3, 33), (7, 64), (5, 100)):
        if group_size is None or group_size <= shape[1]:
            tensor = round_to_nearest(np.ones(shape, np.float32), grid)
            assert packed_size_bytes(shape, grid) == tensor.size_bytes


def test_everything_in_the_weights_file_is_counted(any_float_run: FloatRun) -> None:
    model = teacher_of(any_float_run)
    table = size_table(model, ("1bit", "4bit:normal"))
    for choice, slack in (("4bit:normal", 0), ("1bit", 16)):
        total = table.total(dict.fromkeys(table.packed, choice))
        assert total - slack <= file_bytes(model, choice, "") <= total
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert table.float_bytes == float_bytes(shapes)


def test_a_coded_size_is_that_of_the_coded_file(any_float_run: FloatRun) -> None:
    model = teacher_of(any_float_run)
    choices = ("ternary", "2bit")
    plain, coded = size_table(model, choices), coded_size_table(model, choices)
    for choice in choices:
        formats = dict.fromkeys(plain.packed, choice)
        assert coded.total(formats) < plain.total(formats)
        size = file_bytes(model, choice, AUTO)
        assert size <= coded.total(formats) <= size + 300  # a plain file has a longer header


def test_choices_are_checked_and_ordered_by_size(any_float_run: FloatRun) -> None:
    model = teacher_of(any_float_run)
    table = size_table(model, ("8bit", "1bit", "2bit"))
    assert list(table.packed["embedding.weight"]) == ["1bit", "2bit", "8bit"]
    with pytest.raises(RecipeError, match="need at least one"):
        size_table(model, ())
    with pytest.raises(FormatError, match="no packed format is named '5bit'"):
        size_table(model, ("5bit",))
