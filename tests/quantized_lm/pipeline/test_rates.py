from __future__ import annotations

import itertools
import math

import pytest

from quantized_lm.errors import InputError
from quantized_lm.pipeline.rates import (
    HIGHEST_BITS,
    LOWEST_BITS,
    RateCurve,
    allocate_on_curves,
    allocate_rates,
    cost_at,
    levels_for,
)
from quantized_lm.quant.formats import Grid

WEIGHTS = {"a": 100, "b": 400, "c": 50}
COSTS = {"a": 3.0, "b": 1.0, "c": 0.02}


def mean(rates: dict[str, float]) -> float:
    return sum(WEIGHTS[name] * rates[name] for name in rates) / sum(WEIGHTS.values())


def loss(rates: dict[str, float]) -> float:
    return sum(COSTS[name] * math.pow(2.0, -2 * rates[name]) for name in rates)


@pytest.mark.parametrize("bits", [1.0, 1.9, 2.5, 3.2])
def test_the_mean_is_what_was_asked_for(bits: float) -> None:
    assert mean(allocate_rates(COSTS, WEIGHTS, bits=bits)) == pytest.approx(bits)


def test_no_exchange_of_bits_between_two_matrices_loses_less() -> None:
    for bits in (1.0, 1.9, 2.5, 3.2):
        rates = allocate_rates(COSTS, WEIGHTS, bits=bits)
        least = loss(rates)
        for giver, taker in itertools.permutations(WEIGHTS, 2):
            for amount in (0.01, 0.2):
                moved = dict(rates)
                moved[giver] -= amount / WEIGHTS[giver]
                moved[taker] += amount / WEIGHTS[taker]
                if all(LOWEST_BITS <= rate <= HIGHEST_BITS for rate in moved.values()):
                    assert loss(moved) >= least - 1e-12


def test_four_times_the_cost_of_a_weight_is_one_bit_more() -> None:
    rates = allocate_rates({"a": 4.0, "b": 1.0}, {"a": 10, "b": 10}, bits=2.0)
    assert rates["a"] - rates["b"] == pytest.approx(1.0)
    assert rates["a"] == pytest.approx(2.5)


def test_rates_stay_within_what_level_tables_hold() -> None:
    rates = allocate_rates({"a": 1e9, "b": 1e-9}, {"a": 10, "b": 10}, bits=2.0)
    assert rates == pytest.approx({"a": 3.3, "b": LOWEST_BITS}, abs=1e-6)
    for rate in (LOWEST_BITS, 1.9, 1.91, 2.4, 2.41, HIGHEST_BITS):
        assert math.log2(len(Grid.parse(levels_for(rate)).levels)) > rate


def test_a_cost_below_zero_counts_as_the_smallest_above_it() -> None:
    rates = allocate_rates({"a": -1.0, "b": 0.5}, {"a": 10, "b": 10}, bits=2.0)
    assert rates["a"] == pytest.approx(rates["b"])


@pytest.mark.parametrize("bits", [0.5, 4.0, float("nan")])
def test_means_out_of_reach_are_refused(bits: float) -> None:
    with pytest.raises(InputError, match="bits is"):
        allocate_rates(COSTS, WEIGHTS, bits=bits)


def test_costs_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="no matrix costs anything"):
        allocate_rates({"a": 0.0}, {"a": 1}, bits=2.0)


def test_a_bit_more_costs_a_quarter() -> None:
    assert [cost_at(2.0, bits) for bits in (-1, 0, 1, 2)] == [8.0, 2.0, 0.5, 0.125]
    assert cost_at(-2.0, 1) == 0.0


CURVES = {
    "a": RateCurve.through([(0.5, 8.0), (1.0, 2.0), (2.0, 0.9), (3.0, 0.5)]),
    "b": RateCurve.through([(0.3, 3.0), (1.5, 1.0), (2.2, 0.4)]),
    "c": RateCurve.through([(0.3, 0.02), (3.0, 0.001)]),
}


@pytest.mark.parametrize("bits", [0.5, 1.0, 1.9, 3.2])
def test_on_curves_no_exchange_of_bits_loses_less(bits: float) -> None:
    rates = allocate_on_curves(CURVES, WEIGHTS, bits=bits)
    assert mean(rates) == pytest.approx(bits, abs=1e-6)
    least = sum(CURVES[name].cost(rates[name]) for name in rates)
    for giver, taker in itertools.permutations(WEIGHTS, 2):
        for amount in (0.01, 0.2, 5.0):
            moved = dict(rates)
            moved[giver] -= amount / WEIGHTS[giver]
            moved[taker] += amount / WEIGHTS[taker]
            if all(CURVES[name].bits[0] <= moved[name] <= HIGHEST_BITS for name in moved):
                assert sum(CURVES[name].cost(moved[name]) for name in moved) >= least - 1e-9


def test_a_curve_goes_through_what_was_measured_and_on() -> None:
    curve = RateCurve.through([(2.0, 0.1), (1.0, 1.0), (3.0, 0.05)])
    assert [curve.cost(bits) for bits in (1.0, 2.0, 3.0)] == pytest.approx([1.0, 0.1, 0.05])
    assert curve.cost(1.5) == pytest.approx(math.sqrt(0.1))
    assert curve.cost(4.0) == pytest.approx(0.025)
    step = 1e-6
    for bits in (0.8, 1.5, 2.5, 3.5):
        slope = (curve.cost(bits - step) - curve.cost(bits + step)) / (2 * step)
        assert curve.saved(bits) == pytest.approx(slope, rel=1e-4)


def test_a_curve_leaves_out_what_rises_or_bulges() -> None:
    noisy = [(0.3, 1.0), (1.0, 0.9), (1.5, 0.2), (2.2, 0.25), (2.2, 0.1), (3.0, 0.0)]
    curve = RateCurve.through(noisy)
    assert curve.bits[0] == 0.3
    assert 1.0 not in curve.bits  # 0.9 is above the line from 1.0 to 0.2
    assert all(cost > 0 for cost in curve.costs)
    saved = [curve.saved(bits / 10) for bits in range(3, 35)]
    assert saved == sorted(saved, reverse=True)


@pytest.mark.parametrize("costs", [(0.1, 0.2), (0.0, 0.0)])
def test_a_matrix_whose_cost_does_not_fall_gets_the_least(costs: tuple[float, float]) -> None:
    flat = RateCurve.through(zip((0.5, 2.0), costs, strict=True))
    assert flat.cost(2.0) == pytest.approx(flat.cost(0.5), rel=1e-5)
    rates = allocate_on_curves({**CURVES, "c": flat}, WEIGHTS, bits=1.9)
    assert rates["c"] == pytest.approx(0.5)
    assert mean(rates) == pytest.approx(1.9, abs=1e-6)


@pytest.mark.parametrize("bits", [0.2, 3.6, float("nan")])
def test_means_beyond_the_curves_are_refused(bits: float) -> None:
    with pytest.raises(InputError, match="bits is"):
        allocate_on_curves(CURVES, WEIGHTS, bits=bits)
