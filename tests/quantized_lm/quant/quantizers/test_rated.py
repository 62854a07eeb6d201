"""Claims about quantization at a given rate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from quantized_lm.errors import FormatError
from quantized_lm.quant.entropy import encode
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rated import OnePrice, RatedScale, RatedSettings

EXACT = 2e-3  # bits


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Mean squared error over variance of entropy-constrained quantizers of a Gaussian: the optimum.
@pytest.mark.parametrize(
    ("choice", "bits", "mse"),
    [
        ("4bit:septenary", 2.0, 0.089),
        ("4bit:septenary", 1.8, 0.118),
        ("4bit:quinary", 1.585, 0.158),
        ("4bit:quinary", 1.5, 0.178),
        ("4bit:quinary", 1.333, 0.224),
        ("ternary", 1.32, 0.231),
    ],
)
@pytest.mark.parametrize("tie", ["row", "tensor"])
def test_gaussian_error_is_the_least_at_that_rate(
    choice: str, bits: float, mse: float, tie: str
) -> None:
    weight = normal(128, 1024) * (torch.logspace(-2, 0, 128)[:, None] if tie == "row" else 0.02)
    quantizer = RatedScale(weight, Grid.parse(choice), RatedSettings(tie=tie, bits=bits))
    assert quantizer.rate(weight) <= bits + EXACT
    error = (quantizer(weight) - weight).square().mean(1) / weight.square().mean(1)
    assert error.mean().item() == pytest.approx(mse, rel=0.015)


def train(weight: Tensor, settings: RatedSettings) -> Iterator[tuple[RatedScale, Tensor, float]]:
    """Least squares with correlated inputs: errors of rounding make up for each other."""
    mixed = normal(256, 16, seed=5) @ normal(16, 128, seed=6) / 4 + 0.3 * normal(256, 128, seed=7)
    trained = nn.Parameter(weight.clone())
    quantizer = RatedScale(trained, Grid.parse("4bit:quinary"), settings)
    optimizer = torch.optim.Adam([trained, *quantizer.parameters()], lr=0.02)
    for step in range(160):
        error: Tensor = quantizer(trained) - weight
        loss = (mixed @ error.T).square().mean() / 20  # costs about as much as a model's rounding
        (loss + quantizer.penalty(trained)).backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 160)
        optimizer.step()
        optimizer.zero_grad()
        quantizer.step(trained, (step + 1) / 160)
        yield quantizer, trained.detach(), loss.item()


@pytest.mark.parametrize("bits", [2.0, 1.58, 1.33])
def test_the_rate_holds_while_weights_train(bits: float) -> None:
    losses, rates = [], []
    for quantizer, weight, loss in train(normal(64, 128, seed=1), RatedSettings(bits=bits)):
        losses.append(loss)
        rates.append(quantizer.rate(weight))
    assert all(abs(rate - bits) < 0.08 for rate in rates[96:])
    assert rates[-1] == pytest.approx(bits, abs=0.04)
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize("bits", [1.4, 1.2])
@pytest.mark.parametrize("unlike", [True, False], ids=["unlike columns", "like columns"])
def test_the_rate_can_be_that_of_the_file(bits: float, unlike: bool) -> None:
    weight = normal(512, 128, seed=2)
    if unlike:  # half of them then hardly use the outer levels
        weight[:, :64] *= 0.25
    settings = RatedSettings(tie="row", bits=bits, counts_file=True)
    *_, (quantizer, trained, _) = train(weight, settings)
    size_bytes = encode({"": quantizer.quantize(trained)}).size_bytes[""]
    assert 8 * size_bytes / weight.numel() == pytest.approx(bits, abs=0.04)
    above = quantizer.rate(trained) - bits
    assert above > 0.1 if unlike else above < -0.05


def train_two(settings: RatedSettings, *, costs: tuple[float, float]) -> list[float]:
    """Two matrices, an error in one costing more than in the other; their rates at the end."""
    weights = [nn.Parameter(normal(64, 128, seed=1)), nn.Parameter(normal(32, 128, seed=2))]
    before = [weight.detach().clone() for weight in weights]
    grid = Grid.parse("4bit:septenary")
    scales = [RatedScale(weight, grid, settings) for weight in weights]
    price = OnePrice(list(zip(scales, weights, strict=True)) if settings.one_price else [])
    optimizer = torch.optim.Adam([*weights, *(p for q in scales for p in q.parameters())], lr=0.01)
    for step in range(200):
        loss = torch.zeros(())
        for scale, weight, target, cost in zip(scales, weights, before, costs, strict=True):
            loss += cost * (scale(weight) - target).square().mean() + scale.penalty(weight)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 200)
        optimizer.step()
        optimizer.zero_grad()
        for scale, weight in zip(scales, weights, strict=True):
            scale.step(weight, (step + 1) / 200)
        price.step((step + 1) / 200)
    return [scale.rate(weight) for scale, weight in zip(scales, weights, strict=True)]


def test_under_one_price_bits_go_where_they_save_most_and_their_sum_holds() -> None:
    alone = train_two(RatedSettings(bits=1.5), costs=(0.1, 1.0))
    assert alone == pytest.approx([1.5, 1.5], abs=0.12)
    first, second = train_two(RatedSettings(bits=1.5, one_price=True), costs=(0.1, 1.0))
    assert (64 * first + 32 * second) / 96 == pytest.approx(1.5, abs=0.05)
    assert second > first + 1


def test_a_rate_that_the_levels_never_take_changes_nothing() -> None:
    weight = normal(32, 256)
    loose = RatedScale(weight, Grid.named("ternary"), RatedSettings(bits=1.6, price=0.0))
    assert torch.equal(loose.levels.thresholds, torch.tensor([-0.5, 0.5]))
    assert loose.rate(weight) == pytest.approx(1.536, abs=0.01)  # papers: coded ternary


def test_paying_for_bits_beats_rounding_to_the_nearest_at_the_same_rate() -> None:
    weight, grid = normal(64, 512), Grid.parse("4bit:quinary")
    errors = [
        (RatedScale(weight, grid, RatedSettings(bits=1.4, price=price))(weight) - weight)
        .square()
        .mean()
        for price in (0.0, 0.14)
    ]
    assert errors[1] < 0.97 * errors[0]


@pytest.mark.parametrize(
    ("choice", "settings", "message"),
    [
        ("1bit", {"bits": 0.5}, "need at least 1 without a level zero"),
        ("ternary", {"bits": 0.0}, "bits is 0.0, start_lambda is 0.02; need both above 0"),
        ("ternary", {"start_lambda": 0.0}, "need both above 0"),
        ("ternary", {"price": -1.0}, "price is -1.0; need at least 0"),
        ("ternary", {"interval": 0}, "interval is 0; need at least 1"),
    ],
)
def test_impossible_settings_are_refused(
    choice: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        RatedScale(normal(2, 8), Grid.parse(choice), RatedSettings(**settings))  # type: ignore[arg-type]
