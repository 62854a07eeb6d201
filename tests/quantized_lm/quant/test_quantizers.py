"""Contracts that every quantizer keeps, and claims about round-to-nearest alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers import QUANTIZERS, Quantizer
from quantized_lm.quant.quantizers.rtn import round_to_nearest

GRIDS = [Grid.named(name, table) for name, row in FORMATS.items() for table in row.level_tables]

every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.format)


def gaussian(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


@every_quantizer
@every_grid
def test_a_quantizer_keeps_the_shape_and_repeats_itself(quantizer: Quantizer, grid: Grid) -> None:
    weight = gaussian(5, 37)
    first, second = quantizer(weight, grid), quantizer(weight, grid)
    assert first.shape == (5, 37)
    np.testing.assert_array_equal(first.words, second.words)
    np.testing.assert_array_equal(first.scale, second.scale)


@every_quantizer
@every_grid
def test_a_group_of_zeros_stays_as_near_to_zero_as_scales_allow(
    quantizer: Quantizer, grid: Grid
) -> None:
    weight = gaussian(3, 20)
    weight[1, 8:16] = 0.0
    tensor = quantizer(weight, Grid(grid.format, grid.levels, group_size=8))
    nearest = np.abs(tensor.levels.astype(int)).min() * 2.0**-24
    assert (np.abs(tensor.dequantize()[1, 8:16]) == nearest).all()


@every_quantizer
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused(quantizer: Quantizer, bad: float) -> None:
    weight = gaussian(2, 4)
    weight[1, 2] = bad
    with pytest.raises(FormatError, match="NaN or infinity"):
        quantizer(weight, Grid.named("4bit"))


@pytest.mark.parametrize(
    ("grid", "mse"),
    [
        (Grid.named("1bit"), 0.3634),
        (Grid.named("ternary"), 0.1902),
        (Grid.named("2bit"), 0.1188),
        (Grid.named("4bit"), 0.01154),
        (Grid.named("4bit", "normal"), 0.00950),
    ],
)
def test_gaussian_error_is_that_of_the_best_scalar_quantizer(grid: Grid, mse: float) -> None:
    # Max, "Quantizing for minimum distortion", 1960, tables I and II; a row of 4096 may fit a
    # little better than the whole distribution.
    weight = gaussian(16, 4096)
    error = np.square(round_to_nearest(weight, grid).dequantize() - weight).mean()
    assert 0.97 * mse < error / np.square(weight).mean() < 1.01 * mse


def test_points_of_the_grid_are_reproduced_exactly() -> None:
    codes = np.arange(16)[None, :].repeat(2, axis=0)
    levels = np.array(FORMATS["4bit"].levels, np.float32)
    weight = levels[codes] * np.array([[0.25], [2.0]], np.float32)
    np.testing.assert_array_equal(round_to_nearest(weight, Grid.named("4bit")).dequantize(), weight)


def test_levels_may_come_in_any_order() -> None:
    weight = gaussian(3, 50)
    ascending = round_to_nearest(weight, Grid("2bit", (-3, -1, 1, 3)))
    shuffled = round_to_nearest(weight, Grid("2bit", (3, -3, 1, -1)))
    np.testing.assert_array_equal(ascending.dequantize(), shuffled.dequantize())


def test_groups_never_fit_worse_than_rows() -> None:
    weight = gaussian(8, 96) * np.geomspace(1, 20, 96, dtype=np.float32)
    by_row = round_to_nearest(weight, Grid.named("2bit"))
    by_group = round_to_nearest(weight, Grid.named("2bit", group_size=32))
    assert by_group.scale.shape == (8, 3)
    assert (
        np.square(by_group.dequantize() - weight).sum()
        < np.square(by_row.dequantize() - weight).sum()
    )


def test_every_chunk_of_rows_is_quantized() -> None:
    weight = gaussian(3, 1 << 19)
    tensor = round_to_nearest(weight, Grid.named("1bit"))
    alone = round_to_nearest(weight[2:], Grid.named("1bit"))
    np.testing.assert_array_equal(tensor.words[2:], alone.words)


def test_weights_too_small_for_float16_scales_become_zero() -> None:
    tensor = round_to_nearest(np.full((1, 8), 1e-12, np.float32), Grid.named("8bit"))
    np.testing.assert_array_equal(tensor.dequantize(), 0.0)


@pytest.mark.parametrize(
    ("weight", "grid", "message"),
    [
        (np.zeros(4, np.float32), Grid.named("2bit"), "need a float32 matrix"),
        (np.zeros((2, 2)), Grid.named("2bit"), "need a float32 matrix"),
        (np.zeros((0, 2), np.float32), Grid.named("2bit"), "need a float32 matrix"),
        (np.ones((2, 2), np.float32), Grid.named("2bit", group_size=3), "need 1 to 2"),
        (np.ones((2, 2), np.float32), Grid("2bit", ()), "needs 1 to 4"),
        (np.ones((2, 2), np.float32), Grid("1bit", (-1, 0, 1)), "needs 1 to 2"),
        (np.ones((2, 2), np.float32), Grid("2bit", (0, 200)), "need -128 to 127"),
        (np.ones((2, 2), np.float32), Grid("2bit", (0,)), "every level is zero"),
        (np.full((2, 2), 1e6, np.float32), Grid.named("1bit"), "needs a scale of 1e\\+06"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    weight: NDArray[np.float32], grid: Grid, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        round_to_nearest(weight, grid)
