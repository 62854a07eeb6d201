"""Claims about the definition of products with int8 activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.ops.linear import linear
from quantized_lm.ops.output import gather_log_prob
from quantized_lm.ops.reference import ReferenceBackend
from quantized_lm.quant.activations import quantize_activations
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor

INT8 = ReferenceBackend(activations="int8")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def rounded(format_name: str, shape: tuple[int, int], group_size: int) -> QuantizedTensor:
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return round_to_nearest(weight, Grid.named(format_name, group_size=group_size))


def one_by_one(x: Tensor, tensor: QuantizedTensor) -> list[list[float]]:
    """The definition, number by number: Python's integers, numpy's float32."""
    activations = quantize_activations(x, tensor.packed_format.activation_rule)
    levels = tensor.levels[tensor.codes()].tolist()
    scale = tensor.scale.astype(np.float32)
    y = []
    for codes, step in zip(activations.codes.tolist(), activations.step.numpy(), strict=True):
        row = []
        for n, level in enumerate(levels):
            total = np.float32(0)
            for g in range(tensor.num_groups):
                group = slice(g * tensor.group_size, (g + 1) * tensor.group_size)
                integer = sum(w * c for w, c in zip(level[group], codes[group], strict=True))
                total = total + np.float32(integer) * scale[n, g]
            row.append(float(total * step))
        y.append(row)
    return y


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("group_size", [1, 7, 16, 37])
def test_int8_products_are_those_of_the_definition(format_name: str, group_size: int) -> None:
    tensor, x = rounded(format_name, (6, 37), group_size), normal(3, 37)
    assert linear(x, INT8.prepare(tensor)).tolist() == one_by_one(x, tensor)


def test_integer_sums_beyond_float32_are_rounded_once() -> None:
    # 2^24 is where float32 stops to hold every integer: these sums lie above it, and are odd.
    codes = np.full((1, 2001), 255, np.uint8)
    levels = np.arange(-128, 128, dtype=np.int8)
    codes[0, 0] = 129
    tensor = QuantizedTensor.from_codes(codes, np.ones((1, 1), np.float16), levels, format="8bit")
    x = torch.ones(1, 2001)
    integer = 127 * (127 * 2000 + 1)
    assert int(np.float32(integer)) != integer
    expected = np.float32(integer) * (np.float32(1) / np.float32(127))
    assert linear(x, INT8.prepare(tensor)).item() == expected


@pytest.mark.parametrize("format_name", FORMATS)
def test_int8_products_are_as_near_as_half_a_step(format_name: str) -> None:
    tensor, x = rounded(format_name, (30, 64), 16), normal(5, 64)
    exact = linear(x, ReferenceBackend().prepare(tensor))
    step = quantize_activations(x, FORMATS[format_name].activation_rule).step
    magnitudes = torch.from_numpy(tensor.dequantize()).abs().sum(dim=1)
    bound = 0.501 * step[:, None] * magnitudes
    error = (linear(x, INT8.prepare(tensor)) - exact).abs()
    assert bool((error <= bound).all())
    assert float(error.max()) > 0


def test_int8_log_probabilities_are_the_softmax_of_int8_products() -> None:
    weight, hidden = INT8.prepare(rounded("4bit", (1100, 20), 20)), normal(2, 20)
    expected = linear(hidden, weight).double().log_softmax(dim=1)[1]
    rows, tokens = torch.ones(1100, dtype=torch.int64), torch.arange(1100)
    assert torch.equal(gather_log_prob(hidden, weight, rows, tokens), expected.float())


def test_reports_tell_which_arithmetic_ran() -> None:
    assert (ReferenceBackend().variant, ReferenceBackend().activations) == ("torch", "float32")
    assert (INT8.variant, INT8.activations) == ("int8", "int8")
