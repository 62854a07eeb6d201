"""Bits for the codes of each matrix: more where rounding costs more, their mean given.

Rounding a matrix to b bits per weight at its codes' entropy costs about cost * 4^-b, so the sum

    sum_i cost_i * 4^(b0 - b_i)    with    sum_i weights_i * b_i = bits * sum_i weights_i

is least where every weight's share is the same: b_i = offset + log4(cost_i / weights_i), which is
reverse water-filling (Cover and Thomas, "Elements of information theory", 10.3.3) with measured
sensitivities for variances. Knows neither models nor data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from quantized_lm.errors import InputError

LOWEST_BITS, HIGHEST_BITS = 0.7, 3.5
_HALVINGS = 60
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


def cost_at(cost: float, more_bits: float) -> float:
    """What rounding to so many more bits per weight would cost, by the formula above."""
    return max(cost, 0.0) * 4**-more_bits


def levels_for(bits: float) -> str:
    """The format and level table for a rate."""
    return next(choice for most, choice in _LEVELS if bits <= most)
