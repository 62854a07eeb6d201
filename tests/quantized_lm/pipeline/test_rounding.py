"""Claims about ways to quantize by name."""

from __future__ import annotations

import numpy as np
import pytest

from quantized_lm.errors import FormatError
from quantized_lm.pipeline.rounding import RATED_CHOICES, grid_of, quantized_as, rate_of
from quantized_lm.quant.entropy import encode
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest

WEIGHT = np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32)


@pytest.mark.parametrize("choice", RATED_CHOICES)
def test_codes_at_a_rate_take_it(choice: str) -> None:
    tensor = quantized_as(choice, WEIGHT)
    bits = 8 * encode({"": tensor}).size_bytes[""] / WEIGHT.size
    assert bits == pytest.approx(rate_of(choice), abs=0.03)
    assert len(tensor.levels) == len(grid_of(choice).levels)


def test_more_bits_err_less() -> None:
    errors = [
        np.square(quantized_as(choice, WEIGHT).dequantize() - WEIGHT).mean()
        for choice in RATED_CHOICES
    ]
    assert errors == sorted(errors, reverse=True)


def test_without_a_rate_it_is_rounding_to_nearest() -> None:
    expected = round_to_nearest(WEIGHT, Grid.parse("4bit:normal"))
    assert np.array_equal(quantized_as("4bit:normal", WEIGHT).codes(), expected.codes())
    assert rate_of("2bit") is None


@pytest.mark.parametrize("text", ["", "two", "0", "-1", "nan", "inf"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="need bits per weight above 0"):
        grid_of(f"4bit:quinary@{text}")


@pytest.mark.parametrize("choice", ["4bit:normal@2.0", "2bit@1.5", "1bit@1"])
def test_a_rate_that_no_sensible_scale_meets_is_refused(choice: str) -> None:
    with pytest.raises(
        FormatError, match=rf"bits is {rate_of(choice)}, and scales and tables take"
    ):
        quantized_as(choice, WEIGHT[:8, :16].copy())


@pytest.mark.parametrize("choice", RATED_CHOICES)
def test_with_a_level_zero_a_rate_that_is_too_low_leaves_hardly_anything(choice: str) -> None:
    weight = WEIGHT[:8, :16].copy()
    assert np.square(quantized_as(choice, weight).dequantize() - weight).mean() < 1.1
