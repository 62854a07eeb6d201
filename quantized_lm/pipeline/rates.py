"""Bits for the codes of each matrix: more where rounding costs more, their mean given.

Where costs are measured at several rates, every matrix gets bits up to where one more of them saves
the same (`allocate_on_curves`). Where they are measured at one, a formula stands for the others:
rounding a matrix to b bits per weight at its codes' entropy costs about cost * 4^-b, so the sum

    sum_i cost_i * 4^(b0 - b_i)    with    sum_i weights_i * b_i = bits * sum_i weights_i

is least where every weight's share is the same: b_i = offset + log4(cost_i / weights_i), which is
reverse water-filling (Cover and Thomas, "Elements of information theory", 10.3.3) with measured
sensitivities for variances. Knows neither models nor data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantized_lm.errors import InputError

LOWEST_BITS, HIGHEST_BITS = 0.7, 3.5
_HALVINGS = 60
_LOG_PRICES = (-60.0, 20.0)  # of a bit of one weight, nats per token: what any model may have
_FLAT = 1e-6  # what a bit takes from the logarithm of a cost that does not fall
_LEAST_COST = 1e-12  # nats per token, instead of 0, which has no logarithm
# The fewest even levels that leave room above a rate: those far out are rarely used, and cheap.
_LEVELS = ((1.9, "4bit:quinary"), (2.4, "4bit:septenary"), (math.inf, "4bit:symmetric"))


def allocate_rates(
    costs: Mapping[str, float], weights: Mapping[str, int], *, bits: float
) -> dict[str, float]:
    """Bits per weight by matrix.

    Args:
        costs: of rounding each matrix alone, all to the same number of bits; nats per token. Those
            that are not above 0 count as the smallest that is.
        weights: how many each matrix has.
        bits: mean over all weights.

    Raises:
        InputError: the mean is out of reach, or no cost is above 0.
    """
    if not LOWEST_BITS <= bits <= HIGHEST_BITS:
        raise InputError(f"bits is {bits:.3f}; need {LOWEST_BITS} to {HIGHEST_BITS}")
    smallest = min((cost for cost in costs.values() if cost > 0), default=0.0)
    if not smallest:
        raise InputError("no matrix costs anything; need sensitivities above 0")
    needs = {name: math.log(max(costs[name], smallest) / weights[name], 4) for name in weights}

    def rates(offset: float) -> dict[str, float]:
        return {
            name: min(max(need + offset, LOWEST_BITS), HIGHEST_BITS) for name, need in needs.items()
        }

    def mean(offset: float) -> float:
        at = rates(offset)
        return sum(weights[name] * at[name] for name in at) / sum(weights.values())

    low = LOWEST_BITS - max(needs.values())
    high = HIGHEST_BITS - min(needs.values())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < bits else (low, middle)
    return rates(high)


@dataclass(frozen=True)
class RateCurve:
    """What quantizing one matrix costs, by rate: its logarithm is straight between measurements.

    Attributes:
        bits: (P,) per weight, ascending, two or more. costs: (P,) nats per token, above 0. The
            logarithms are convex, so that a bit saves less the more there are.
    """

    bits: tuple[float, ...]
    costs: tuple[float, ...]

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]]) -> RateCurve:
        """The lower convex hull of measurements (bits, cost), without what does not fall.

        A matrix on which nothing depends, or nothing that can be measured, has hardly a slope.
        """
        hull: list[tuple[float, float]] = []
        for bits, cost in sorted(points):
            point = bits, math.log(max(cost, _LEAST_COST))
            if hull and (bits <= hull[-1][0] or point[1] >= hull[-1][1]):
                continue
            while len(hull) > 1 and _steepness(hull[-2], hull[-1]) < _steepness(hull[-1], point):
                hull.pop()
            hull.append(point)
        if len(hull) == 1:
            hull.append((hull[0][0] + 1, hull[0][1] - _FLAT))
        return cls(tuple(bits for bits, _ in hull), tuple(math.exp(log) for _, log in hull))

    def cost(self, bits: float) -> float:
        """Nats per token; beyond the measurements as the nearest two go on."""
        at, steepness = self._piece(bits)
        return self.costs[at] * math.exp(steepness * (self.bits[at] - bits))

    def saved(self, bits: float) -> float:
        """What the next bit per weight saves, as a derivative."""
        return self._piece(bits)[1] * self.cost(bits)

    def _piece(self, bits: float) -> tuple[int, float]:
        """The measurement before, and how steeply the logarithm falls from there."""
        last = len(self.bits) - 2
        at = next((i for i in range(last) if bits < self.bits[i + 1]), last)
        ends = [(self.bits[i], math.log(self.costs[i])) for i in (at, at + 1)]
        return at, _steepness(*ends)


def _steepness(first: tuple[float, float], second: tuple[float, float]) -> float:
    return (first[1] - second[1]) / (second[0] - first[0])


def allocate_on_curves(
    curves: Mapping[str, RateCurve], weights: Mapping[str, int], *, bits: float
) -> dict[str, float]:
    """Bits per weight by matrix, at which one more bit saves the same in every matrix.

    That is the least sum of costs for the bits (Shoham and Gersho, 1988), costs being convex.

    Args:
        curves: of each matrix. weights: how many each has.
        bits: mean over all weights.

    Raises:
        InputError: the mean is out of reach.
    """
    lowest = {name: curves[name].bits[0] for name in weights}
    total = sum(weights.values())
    least = sum(weights[name] * lowest[name] for name in weights) / total
    if not least <= bits <= HIGHEST_BITS:
        raise InputError(f"bits is {bits:.3f}; need {least:.3f} to {HIGHEST_BITS}")

    def rate(name: str, price: float) -> float:
        low, high = lowest[name], HIGHEST_BITS
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            pays = curves[name].saved(middle) > price * weights[name]
            low, high = (middle, high) if pays else (low, middle)
        return high

    def rates(log_price: float) -> dict[str, float]:
        return {name: rate(name, math.exp(log_price)) for name in weights}

    low, high = _LOG_PRICES
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        at = rates(middle)
        mean = sum(weights[name] * at[name] for name in at) / total
        low, high = (middle, high) if mean > bits else (low, middle)
    return rates(high)


def cost_at(cost: float, more_bits: float) -> float:
    """What rounding to so many more bits per weight would cost, by the formula above."""
    return max(cost, 0.0) * 4**-more_bits


def levels_for(bits: float) -> str:
    """The format and level table that have room for a rate."""
    return next(choice for most, choice in _LEVELS if bits <= most)
