"""Claims about the nearest point of a grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers import projection
from quantized_lm.quant.quantizers.levels import GridPoint, Levels
from quantized_lm.quant.quantizers.projection import project, project_tied
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.quantizers.ties import Ties

CHOICES = [f"{name}:{table}" for name, row in FORMATS.items() for table in row.level_tables]
# Scales are exact to half a unit in the last place of float16.
FLOAT16 = 2.0**-11


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(weight: Tensor, grid: Grid, tie: str, point: GridPoint) -> Tensor:
    """Squared error of each group."""
    ties, values = Ties(weight, tie), Levels(grid).values
    rounded = ties.spread(point.scale) * values[point.codes.int()]
    return ties.total((weight - rounded).square().sum(1))


def brute_force(block: Tensor, grid: Grid) -> float:
    """The least squared error of a vector over all codes, each with its best scale >= 0."""
    columns = itertools.product(sorted(grid.levels), repeat=block.numel())
    codes = np.array(list(columns), np.float64)
    inner = np.maximum(codes @ block.double().numpy(), 0)
    norm = np.maximum(np.square(codes).sum(1), 1)
    return float(block.double().square().sum()) - float((inner**2 / norm).max())


def columns_for(num_levels: int, vectors: int) -> int:
    """As many columns as leave brute force 20,000 codes at most."""
    return max(1, int(np.log(20_000) / np.log(num_levels)) // vectors)


@pytest.mark.parametrize("tie", ["row", "tensor", "cluster:2"])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_projection_is_the_best_of_all_codes(choice: str, tie: str) -> None:
    grid = Grid.parse(choice)
    for seed in range(4):
        columns = columns_for(len(grid.levels), 1 if tie == "row" else 2)
        scale = torch.tensor([[0.02], [0.02], [5.0], [5.0]][: 2 if tie == "tensor" else 4])
        weight = scale * (1 + 0.1 * normal(len(scale), 1)) * normal(len(scale), columns, seed=seed)
        blocks = [row for block in Ties(weight, tie).blocks(weight) for row in block]
        best = torch.tensor([brute_force(row, grid) for row in blocks])
        found = error(weight, grid, tie, project(weight, grid, tie))
        power = torch.stack([row.double().square().sum() for row in blocks])
        assert (found <= best + power * FLOAT16**2 + 1e-12).all()
        assert (found >= best - power * 1e-6).all()


def test_one_bit_is_sign_times_mean() -> None:
    weight = normal(7, 33)
    point = project(weight, Grid.named("1bit"))
    assert torch.equal(point.codes, (weight > 0).to(torch.uint8))
    torch.testing.assert_close(
        point.scale, weight.abs().mean(1, keepdim=True), rtol=FLOAT16, atol=0
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_searching_some_scales_comes_close_to_searching_all(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, grid = normal(20, 64), Grid.parse(choice)
    weight[3] = 0
    exact = error(weight, grid, "row", project(weight, grid)).sum()
    monkeypatch.setattr(projection, "_MOST_CHANGES", 0)
    quick = error(weight, grid, "row", project(weight, grid)).sum()
    assert exact <= quick * (1 + 1e-3)
    assert quick <= exact * 1.2  # the error of 8 bits has many minima


@pytest.mark.parametrize("choice", CHOICES)
def test_it_is_never_farther_than_rounding_to_nearest(choice: str) -> None:
    weight, grid = normal(16, 96) * torch.logspace(-3, 1, 16)[:, None], Grid.parse(choice)
    rounded = torch.from_numpy(round_to_nearest(weight.numpy(), grid).dequantize())
    found = error(weight, grid, "row", project(weight, grid))
    limit = (weight - rounded).square().sum(1) + weight.square().sum(1) * FLOAT16**2
    assert (found <= limit).all()


def test_alternation_from_a_near_scale_ends_where_the_search_does() -> None:
    weight, grid = normal(12, 64), Grid.named("2bit")
    levels, ties = Levels(grid), Ties(weight, "tensor")
    best = project(weight, grid, "tensor")
    found = project_tied(weight, levels, ties, start=best.scale * 1.05)
    torch.testing.assert_close(
        error(weight, grid, "tensor", found), error(weight, grid, "tensor", best), rtol=0.01, atol=0
    )


def test_a_group_of_zeros_has_the_smallest_scale() -> None:
    weight = normal(3, 8)
    weight[1] = 0
    point = project(weight, Grid.named("2bit"))
    assert point.scale.flatten().eq(2.0**-24).tolist() == [False, True, False]


def test_levels_of_one_sign_leave_the_others_at_the_lowest() -> None:
    point = project(torch.tensor([[-1.0, 2.0, 4.0]]), Grid("2bit", (0, 1, 2)))
    assert point.codes.tolist() == [[0, 1, 2]]
    assert point.scale.item() == 2.0


def test_weights_that_need_too_large_a_scale_are_refused() -> None:
    with pytest.raises(FormatError, match="needs a scale of 1e\\+06"):
        project(torch.full((2, 2), 1e6), Grid.named("1bit"))
