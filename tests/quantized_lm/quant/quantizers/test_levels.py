"""Claims about rounding to a table of levels."""

from __future__ import annotations

import pytest
import torch

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers.levels import Levels, require_matrix

CHOICES = [f"{name}:{table}" for name, row in FORMATS.items() for table in row.level_tables]


def ratios(levels: Levels, count: int = 1000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=generator) * levels.reach / 2


@pytest.mark.parametrize("choice", CHOICES)
def test_every_ratio_goes_to_the_nearest_level(choice: str) -> None:
    levels = Levels(Grid.parse(choice))
    ratio = ratios(levels)
    distance = (ratio[:, None] - levels.values).abs()
    torch.testing.assert_close((levels.nearest(ratio) - ratio).abs(), distance.min(1).values)
    assert torch.equal(levels.values[levels.codes(ratio).int()], levels.nearest(ratio))


@pytest.mark.parametrize("choice", CHOICES)
def test_compiled_and_plain_rounding_agree_to_the_bit(choice: str) -> None:
    levels = Levels(Grid.parse(choice))
    ratio = torch.cat([ratios(levels, 200), levels.thresholds, levels.values])
    compiled = torch.compile(levels.nearest, backend="eager")
    assert torch.equal(compiled(ratio), levels.nearest(ratio))
    torch._dynamo.reset()


def test_thresholds_that_moved_are_state() -> None:
    grid = Grid.parse("4bit:quinary")
    levels, restored = Levels(grid, moves=True), Levels(grid, moves=True)
    levels.move(torch.tensor([-1.5, -0.7, 0.7, 1.5]))
    restored.load_state_dict(levels.state_dict())
    ratio = torch.tensor([-1.6, -1.4, -0.6, 0.6, 0.8, 9.0])
    assert restored.nearest(ratio).tolist() == [-2, -1, 0, 0, 1, 2]
    assert Levels(grid).state_dict() == {}


def test_the_straight_through_gradient_stops_at_the_outermost_level() -> None:
    levels = Levels(Grid.parse("2bit"))
    ratio = torch.tensor([-3.1, -2.9, 0.1, 2.9, 3.1], requires_grad=True)
    rounded = levels.straight_through(ratio)
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert rounded.tolist() == [-3, -3, 1, 3, 3]
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [0, 1, 1, 1, 0]


def test_one_level_is_enough() -> None:
    levels = Levels(Grid("2bit", (3,)))
    assert levels.nearest(torch.tensor([-1.0, 7.0])).tolist() == [3, 3]


def test_scales_per_group_of_columns_are_refused() -> None:
    with pytest.raises(FormatError, match="need None: one scale per row"):
        Levels(Grid.named("2bit", group_size=8))


@pytest.mark.parametrize(
    "weight", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.float64), torch.zeros(0, 2)]
)
def test_what_is_no_matrix_of_weights_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(FormatError, match="need a float32 matrix"):
        require_matrix(weight)
