"""When requests arrive, fixed before the first is sent. Knows neither bodies nor servers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


def steady(rate: float, duration_s: float, seed: int) -> Times:
    """A Poisson process: (n,) seconds, ascending, n about rate * duration_s."""
    return ramp(rate, rate, duration_s, seed)


def ramp(first_rate: float, last_rate: float, duration_s: float, seed: int) -> Times:
    """A Poisson process whose rate goes evenly from one to the other, requests per second.

    Arrivals of a process of rate 1 in expected requests, read off at the time by which so many are
    expected.
    """
    generator = np.random.default_rng(seed)
    total = (first_rate + last_rate) / 2 * duration_s
    expected = _unit_poisson(generator, total)
    slope = (last_rate - first_rate) / duration_s
    if slope == 0.0:
        return expected / first_rate if first_rate else np.empty(0)
    roots: Times = (np.sqrt(first_rate**2 + 2 * slope * expected) - first_rate) / slope
    return roots


def bursts(rate: float, duration_s: float, *, size: int, every_s: float, seed: int) -> Times:
    """A Poisson process, and `size` more requests at once every `every_s`."""
    starts = np.arange(every_s / 2, duration_s, every_s)
    return np.sort(np.concatenate([steady(rate, duration_s, seed), np.repeat(starts, size)]))


def even(rate: float, duration_s: float) -> Times:
    """One request every 1 / rate seconds."""
    return np.arange(0.0, duration_s, 1.0 / rate)


def drawn(count: int, shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """`count` choices, each with the probability that its share of the sum is."""
    weights = np.asarray(shares, dtype=np.float64)
    generator = np.random.default_rng(seed)
    return generator.choice(len(weights), count, p=weights / weights.sum())


def _unit_poisson(generator: np.random.Generator, end: float) -> Times:
    """Arrivals of a Poisson process of rate 1 before `end`."""
    count = int(generator.poisson(end))
    return np.sort(generator.uniform(0.0, end, count))
