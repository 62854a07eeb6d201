"""Claims about ADMM alone; contracts are in test_trained.py, projections in test_projection.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.admm import AdmmQuantizer, AdmmSettings
from quantized_lm.quant.quantizers.projection import quantize_by_projection


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(weight: Tensor, **settings: Any) -> AdmmQuantizer:
    return AdmmQuantizer(weight, Grid.named("ternary"), AdmmSettings(**settings))


def point(quantizer: AdmmQuantizer) -> Tensor:
    return torch.from_numpy(quantizer.quantize(quantizer.dual).dequantize())


@pytest.mark.parametrize("choice", ["8bit", "4bit:normal", "2bit"])
def test_g_is_the_nearest_point_of_small_rows_too(choice: str) -> None:
    weight, grid = normal(2, 64) * torch.tensor([[1e-4], [1e-6]]), Grid.parse(choice)
    settings = AdmmSettings(decoupled=False, interval=1, tuning_share=0.0)
    quantizer = AdmmQuantizer(weight, grid, settings)
    nearest = torch.from_numpy(quantize_by_projection(weight.numpy(), grid).dequantize())
    assert torch.equal(point(quantizer), nearest)
    quantizer.step(weight, 0.5)
    assert torch.equal(quantizer.dual, weight - nearest)


def test_theta_is_float_until_codes_freeze() -> None:
    weight = nn.Parameter(normal(4, 16))
    quantizer = make(weight, tuning_share=0.2)
    for progress in (0.1, 0.5, 0.8):
        quantizer.step(weight, progress)
        assert quantizer(weight) is weight
    quantizer.step(weight, 0.81)
    assert torch.equal(quantizer(weight), point(quantizer))


def test_frozen_codes_stay_and_scales_learn() -> None:
    weight = nn.Parameter(normal(4, 16))
    quantizer = make(weight, tuning_share=1.0)
    quantizer.step(weight, 0.01)
    codes, scale = quantizer.codes.clone(), quantizer.log_scale.detach().clone()
    optimizer = torch.optim.SGD([weight, quantizer.log_scale], lr=0.1)
    (quantizer(weight) - normal(4, 16, seed=1)).square().sum().backward()
    assert weight.grad is None
    optimizer.step()
    quantizer.step(weight, 1.0)
    assert torch.equal(quantizer.codes, codes)
    assert not torch.equal(quantizer.log_scale, scale)


def test_the_dual_adds_up_what_theta_is_off() -> None:
    weight = nn.Parameter(normal(4, 16))
    quantizer = make(weight, decoupled=False, interval=1, rho_growth=1.0, tuning_share=0.0)
    total = torch.zeros(4, 16)
    for step in range(1, 4):
        quantizer.step(weight, step / 10)
        total += weight.detach() - point(quantizer)
        torch.testing.assert_close(quantizer.dual, total)
        torch.testing.assert_close(quantizer.anchor, point(quantizer) - quantizer.dual)


def test_the_price_of_the_constraint_outlives_a_growing_rho() -> None:
    weight = nn.Parameter(normal(4, 16))
    quantizer = make(weight, decoupled=False, interval=1, rho=1.0, rho_growth=9.0, tuning_share=0.0)
    quantizer.step(weight, 0.25)
    price, before = quantizer.rho * quantizer.dual, point(quantizer)
    quantizer.step(weight, 0.75)
    step = quantizer.rho * (weight.detach() - point(quantizer))
    torch.testing.assert_close(quantizer.rho * quantizer.dual, price + step)
    assert float(quantizer.rho) == pytest.approx(9**0.75)
    assert before.shape == weight.shape


def test_g_moves_only_every_interval_and_at_the_end() -> None:
    weight = nn.Parameter(normal(4, 16))
    quantizer = make(weight, decoupled=False, interval=3, tuning_share=0.0)
    moved = []
    for step in range(1, 9):
        before = quantizer.dual.clone()
        quantizer.step(weight, step / 8)
        moved.append(not torch.equal(before, quantizer.dual))
    assert moved == [False, False, True, False, False, True, False, True]


def test_the_penalty_is_relative_to_the_first_weight() -> None:
    weight = normal(4, 16)
    small, large = (
        make(size * weight, decoupled=False, rho=2.0).penalty(size * weight).item()
        for size in (0.01, 10.0)
    )
    assert small == pytest.approx(large, rel=1e-3)
    # Ternary rounding of a Gaussian is off by 0.19 of its power; rows of 16 vary a little.
    assert 0.12 < small < 0.22


def test_a_decoupled_pull_goes_a_share_of_the_way() -> None:
    weight = nn.Parameter(normal(4, 16))
    quantizer = make(weight, rho=0.25, interval=100)
    start, target = weight.detach().clone(), quantizer.anchor.clone()
    assert quantizer.penalty(weight).item() == 0
    quantizer.step(weight, 0.01)
    torch.testing.assert_close(weight.detach(), start + 0.25 * (target - start))


@pytest.mark.parametrize("decoupled", [True, False])
def test_theta_reaches_the_grid_and_beats_rounding(decoupled: bool) -> None:
    inputs, aim = normal(256, 24), normal(8, 24, seed=2)
    inputs = inputs[:, :8].repeat(1, 3) + 0.2 * inputs  # columns that make up for each other
    weight = nn.Parameter(aim.clone())
    # In the loss, rho is about the loss's own curvature; SGD, so that it keeps its proportion.
    in_loss = {"decoupled": False, "rho": 40.0, "rho_growth": 10.0, "interval": 10}
    quantizer = make(weight, **({} if decoupled else in_loss))
    optimizer = (
        torch.optim.Adam([weight, quantizer.log_scale], lr=0.02)
        if decoupled
        else torch.optim.SGD([weight, quantizer.log_scale], lr=0.05)
    )

    def loss(values: Tensor) -> Tensor:
        return (inputs @ (values - aim).T).square().mean()

    before = loss(point(quantizer)).item()
    for step in range(160):
        total = loss(quantizer(weight)) + quantizer.penalty(weight)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        quantizer.step(weight, (step + 1) / 200)
    off = (weight.detach() - point(quantizer)).square().mean() / weight.detach().square().mean()
    assert off < 0.05
    assert loss(point(quantizer)).item() < 0.7 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 0.0}, "rho is 0.0, rho_growth is 25.0; need both above 0"),
        ({"interval": 0}, "need at least 1"),
        ({"tuning_share": 1.5}, "need 0 to 1"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        AdmmSettings(**settings)  # type: ignore[arg-type]
