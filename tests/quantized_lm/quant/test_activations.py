"""Claims about rounding activations to int8."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantized_lm.errors import FormatError, ShapeError
from quantized_lm.quant.activations import ACTIVATION_RULES, quantize_activations

FINITE = st.floats(-(2.0**120), 2.0**120, width=32)
ALIKE = st.floats(0.75, 1.25, width=32)  # where four codes come closest to a byte's limit
ROWS = st.one_of(
    st.lists(FINITE, min_size=1, max_size=11),
    st.lists(
        st.builds(lambda x, s: s * x, ALIKE, st.sampled_from([-1, 1])), min_size=4, max_size=9
    ),
)


def one_by_one(row: list[float], rule: str) -> tuple[list[int], np.float32]:
    """The definition, number by number in float32."""
    x = np.array([*row, *[0.0] * (-len(row) % 4)], np.float32)
    step = np.abs(x).max() / np.float32(127)
    if rule == "quads":
        for a, b, c, d in np.abs(x).reshape(-1, 4):
            step = max(step, ((a + b) + (c + d)) / np.float32(253))
    if step < np.float32(2.0**-100):
        return [0] * len(row), np.float32(0)
    inverse = np.float32(1) / step
    return [int(np.rint(value * inverse)) for value in x[: len(row)]], step


@pytest.mark.parametrize("rule", ACTIVATION_RULES)
@settings(deadline=None)
@given(row=ROWS)
def test_codes_and_step_are_those_of_the_definition(rule: str, row: list[float]) -> None:
    got = quantize_activations(torch.tensor([row], dtype=torch.float32), rule)
    codes, step = one_by_one(row, rule)
    assert got.codes[0].tolist() == codes
    assert np.float32(got.step[0].item()).tobytes() == step.tobytes()


@pytest.mark.parametrize("rule", ACTIVATION_RULES)
def test_large_matrices_follow_the_definition_bit_for_bit(rule: str) -> None:
    # Vector code of torch takes other paths than a short row does.
    x = torch.randn(40, 1003, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-30, 30, 40)[:, None]
    got = quantize_activations(x, rule)
    for row, codes, step in zip(x.tolist(), got.codes.tolist(), got.step.tolist(), strict=True):
        assert (codes, step) == one_by_one(row, rule)


@settings(deadline=None)
@given(row=ROWS)
def test_every_subset_sum_of_four_codes_fits_a_byte(row: list[float]) -> None:
    (codes,) = quantize_activations(torch.tensor([row], dtype=torch.float32), "quads").codes
    assert int(codes.int().abs().max()) <= 127
    for start in range(0, len(row), 4):
        quad = codes[start : start + 4].tolist()
        sums = [sum(part) for size in range(5) for part in itertools.combinations(quad, size)]
        assert max(map(abs, sums)) <= 255
        assert max(sums) - min(sums) <= 255  # so an offset makes all of them unsigned bytes


def test_four_equal_numbers_reach_the_limit_of_the_quads() -> None:
    got = quantize_activations(torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.5]]), "quads")
    assert got.codes.tolist() == [[63, 63, 63, 63, 32]]
    assert quantize_activations(torch.ones(1, 4), "absmax").codes.tolist() == [[127] * 4]


@pytest.mark.parametrize("rule", ACTIVATION_RULES)
def test_ties_go_to_the_even_code(rule: str) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    got = quantize_activations(x, rule)
    assert got.step.tolist() == [1.0]
    assert got.codes.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


@pytest.mark.parametrize("rule", ACTIVATION_RULES)
@pytest.mark.parametrize("smallest", [0.0, 1e-45, 1e-39, 2.0**-100])
def test_rows_too_small_for_full_precision_are_zero(rule: str, smallest: float) -> None:
    got = quantize_activations(torch.full((1, 6), smallest), rule)
    assert got.step.tolist() == [0.0]
    assert got.codes.tolist() == [[0] * 6]


def test_the_smallest_step_is_kept() -> None:
    got = quantize_activations(torch.tensor([[127 * 2.0**-100, 2.0**-100]]), "absmax")
    assert got.step.tolist() == [2.0**-100]
    assert got.codes.tolist() == [[127, 1]]


@pytest.mark.parametrize("rule", ACTIVATION_RULES)
def test_an_outlier_leaves_its_own_row_only(rule: str) -> None:
    x = torch.tensor([[3e37, 1.0, -1.0], [2.0, 1.0, -1.0]])
    got = quantize_activations(x, rule)
    assert got.codes[0].tolist() == [127, 0, 0]
    assert torch.equal(got.codes[1:], quantize_activations(x[1:], rule).codes)


@pytest.mark.parametrize("rule", ACTIVATION_RULES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_makes_its_own_row_nan(rule: str, bad: float) -> None:
    got = quantize_activations(torch.tensor([[1.0, bad, 2.0], [1.0, 1.0, 0.0]]), rule)
    assert got.step.isnan().tolist() == [True, False]
    assert got.codes[0].tolist() == [0, 0, 0]


def test_a_sum_of_four_beyond_float32_makes_the_row_nan() -> None:
    x = torch.full((1, 4), 2e38)
    assert bool(quantize_activations(x, "quads").step.isnan().all())
    assert quantize_activations(x, "absmax").codes.tolist() == [[127] * 4]


def test_no_rows_are_no_codes() -> None:
    got = quantize_activations(torch.empty(0, 5), "quads")
    assert (got.codes.shape, got.step.shape) == ((0, 5), (0,))


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(FormatError, match="known are absmax, quads"):
        quantize_activations(torch.zeros(1, 1), "mean")


@pytest.mark.parametrize(
    "x", [torch.zeros(3), torch.zeros(1, 3, dtype=torch.float64), torch.zeros(2, 0)]
)
def test_what_is_no_float32_matrix_is_refused(x: Tensor) -> None:
    with pytest.raises(ShapeError, match="need a float32 matrix"):
        quantize_activations(x, "absmax")
