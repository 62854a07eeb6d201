"""Claims about packing a float model."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.models.base import LanguageModel
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import load_packed, matrix_names
from quantized_lm.ops.backend import Activations
from quantized_lm.ops.reference import ReferenceBackend
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.tree import build_tree

Plain = dict[str, NDArray[np.float32]]


def parts_of(model: FloatModel) -> tuple[dict[str, QuantizedTensor], Plain]:
    parameters = {name: p.numpy() for name, p in model.named_parameters()}
    grid = Grid.named("4bit", "normal")
    packed = {name: round_to_nearest(parameters[name], grid) for name in matrix_names(model)}
    return packed, {name: p for name, p in parameters.items() if name not in packed}


def unpacked(model: FloatModel) -> FloatModel:
    """A float model with the weights that the packed one has."""
    floats = copy.deepcopy(model)
    for name, tensor in parts_of(model)[0].items():
        floats.get_parameter(name).copy_(torch.from_numpy(tensor.dequantize()))
    return floats


def scores(model: LanguageModel) -> NDArray[np.float32]:
    tree = build_tree([[3, 4, 5], [3, 9], [], [7, 7, 7, 2]])
    return model.extend([model.new_state()], [tree.parent[1:]], [tree.token[1:]])[0]


def test_a_packed_model_scores_as_a_float_model_of_the_unpacked_weights(
    model: FloatModel,
) -> None:
    blank = copy.deepcopy(model)
    for parameter in blank.parameters():
        parameter.zero_()
    packed_model = load_packed(blank, *parts_of(model), ReferenceBackend())
    assert scores(packed_model) == pytest.approx(scores(unpacked(model)), rel=1e-5)


@pytest.mark.parametrize(("activations", "error"), [("float32", 1e-5), ("int8", 0.05)])
def test_activations_of_int8_cost_little(
    model: FloatModel, activations: Activations, error: float
) -> None:
    backend = ReferenceBackend(activations=activations)
    packed_model = load_packed(copy.deepcopy(model), *parts_of(model), backend)
    difference = np.abs(scores(packed_model) - scores(unpacked(model)))
    assert difference.max() < error


BLOCK = ("qkv", "out", "up", "down")
CELL = tuple(f"{side}.{gate}" for side in ("input", "recurrent") for gate in "ifgo")
PACKED = {
    "Transformer": [f"blocks.{i}.{part}.weight" for i in (0, 1) for part in BLOCK],
    "Gpt2": [f"blocks.{i}.{part}.weight" for i in (0, 1) for part in BLOCK],
    "Lstm": [f"layers.{i}.{part}.weight" for i in (0, 1) for part in CELL],
}


def test_projections_and_the_embedding_are_packed_and_nothing_else(model: FloatModel) -> None:
    assert matrix_names(model) == ["embedding.weight", *PACKED[type(model).__name__]]


def test_tensors_that_do_not_fit_the_architecture_are_refused(model: FloatModel) -> None:
    packed, plain = parts_of(model)
    backend = ReferenceBackend()
    absent = matrix_names(model)[-1]
    missing = {name: t for name, t in packed.items() if name != absent}
    with pytest.raises(FormatError, match=re.escape(absent)):
        load_packed(copy.deepcopy(model), missing, plain, backend)
    as_plain = {**plain, absent: packed[absent].dequantize()}
    with pytest.raises(FormatError, match=re.escape(absent)):
        load_packed(copy.deepcopy(model), missing, as_plain, backend)
    name = next(iter(plain))
    short = {**plain, name: np.ones((7, 3), np.float32)}
    with pytest.raises(FormatError, match=rf"'{name}' is \(7, 3\); need \("):
        load_packed(copy.deepcopy(model), packed, short, backend)
