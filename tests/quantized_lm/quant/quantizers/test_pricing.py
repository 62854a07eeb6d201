"""Claims about thresholds and scales for a wanted rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantized_lm.quant.quantizers.pricing import Pricing, RatioHistogram, entropy, meet_rate

LEVELS = np.arange(-2.0, 3.0)
MIDDLES = np.arange(-1.5, 2.0)


def ratios(count: int = 200_000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) / 0.8


def priced(most_bits: float, price: float) -> Pricing:
    return meet_rate(RatioHistogram.of(ratios(), 2.0), LEVELS, most_bits=most_bits, price=price)


def test_entropy_is_that_of_the_shares() -> None:
    assert entropy(np.array([0.5, 0.25, 0.0, 0.25])) == 1.5
    assert entropy(np.array([1.0])) == 0.0


def test_shares_are_counted_between_thresholds() -> None:
    ratio = torch.tensor([-1e9, -1.0, 0.0, 0.1, 0.9, 1e9])
    shares = RatioHistogram.of(ratio, 2.0).shares(np.array([-0.5, 0.5, 1.5]))
    np.testing.assert_allclose(shares * 6, [2, 2, 1, 1])


def test_rates_that_suffice_are_left_alone() -> None:
    pricing = priced(9.0, 0.0)
    assert pricing.stretch == 1.0
    np.testing.assert_array_equal(pricing.thresholds, MIDDLES)


@pytest.mark.parametrize("bits", [2.0, 1.0, 0.1])
def test_scales_stretch_until_bits_suffice(bits: float) -> None:
    pricing = priced(bits, 0.14)
    ratio = (ratios() / pricing.stretch).numpy()
    codes = np.searchsorted(pricing.thresholds, ratio)
    assert abs(entropy(np.bincount(codes) / codes.size) - bits) < 1e-3


def test_thresholds_are_where_costs_are_equal() -> None:
    pricing = priced(1.585, 0.14)
    ratio = ratios() / pricing.stretch
    bits = -np.log2(RatioHistogram.of(ratio, 2.0).shares(pricing.thresholds))
    for index, threshold in enumerate(pricing.thresholds):
        costs = np.square(threshold - LEVELS) + 0.14 * bits
        assert costs[index] == pytest.approx(costs[index + 1], abs=1e-3)
        assert costs.min() == pytest.approx(costs[index], abs=1e-3)


def test_a_level_that_is_never_worth_its_bits_is_skipped() -> None:
    # Two clusters far apart, a few ratios between them.
    ratio = torch.cat([torch.full((1000,), -2.0), torch.full((1000,), 2.0), torch.tensor([0.4])])
    histogram = RatioHistogram.of(ratio, 2.0)
    pricing = meet_rate(histogram, LEVELS, most_bits=9.0, price=1.0)
    assert (np.diff(pricing.thresholds) >= 0).all()
    costs = np.square(0.4 - LEVELS) - np.log2(
        np.maximum(histogram.shares(pricing.thresholds), 1 / 2001)
    )
    assert np.searchsorted(pricing.thresholds, 0.4) == costs.argmin()
