"""Thresholds and scales that make codes take a wanted number of bits at their entropy.

Entropy-constrained scalar quantization (Chou, Lookabaugh and Gray, "Entropy-constrained vector
quantization", 1989, in one dimension) chooses for each ratio = weight / scale

    code = argmin over l of (ratio - level[l])^2 + price * bits[l],   bits[l] = -log2(share[l]),

share[l] being how often level l is chosen. Knows ratios only as a histogram: no weights, no torch
modules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BINS = 8192
_REACH = 4.0  # of the histogram, in multiples of the largest level
_HALVINGS = 40
_ROUNDS = 60
_MOST_STRETCH = 10.0  # as a logarithm

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RatioHistogram:
    """How the ratios of a matrix are distributed.

    Attributes:
        edges: (B + 1,), ascending. below: (B + 1,), the share of ratios below each edge.
        count: of ratios.
    """

    edges: Floats
    below: Floats
    count: int

    @classmethod
    def of(cls, ratio: Tensor, reach: float) -> RatioHistogram:
        """Count ratios (...) for levels up to `reach` in size; those far beyond go to the ends."""
        limit = _REACH * reach
        cell = ((ratio + limit) * (_BINS / (2 * limit))).clamp(0, _BINS - 1).to(torch.int32)
        counts = torch.bincount(cell.flatten(), minlength=_BINS).cpu().numpy()
        below = np.concatenate([[0.0], counts.cumsum() / ratio.numel()])
        return cls(np.linspace(-limit, limit, _BINS + 1), below, ratio.numel())

    def shares(self, thresholds: Floats) -> Floats:
        """How often each of (L,) levels is chosen, with (L - 1,) ascending thresholds."""
        below = np.empty(len(thresholds) + 2)
        below[0], below[-1] = 0.0, 1.0
        below[1:-1] = np.interp(thresholds, self.edges, self.below)
        return below[1:] - below[:-1]


def entropy(shares: Floats) -> float:
    """Bits per symbol of an ideal code for symbols that occur with these shares."""
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


@dataclass(frozen=True, eq=False)
class Pricing:
    """How to round: thresholds, after all scales were multiplied by `stretch`.

    Attributes:
        thresholds: (L - 1,), ascending. stretch: at least 1.
    """

    thresholds: Floats
    stretch: float


def meet_rate(
    histogram: RatioHistogram, values: Floats, *, most_bits: float, price: float
) -> Pricing:
    """Price the levels by how often they are chosen, and stretch the scales until bits suffice.

    Scales only grow: a rate below the limit is left as it is. Each round prices by the shares that
    the one before it led to.

    Args:
        histogram: of weight / scale with the scales as they are.
        values: (L,) levels, ascending.
        most_bits: per weight.
        price: of a bit, in squares of the smallest gap between levels.
    """
    gaps = np.diff(values)
    middles = (values[:-1] + values[1:]) / 2
    bit = price * gaps.min(initial=np.inf) ** 2 if len(gaps) else 0.0
    pricing = Pricing(middles, 1.0)
    for _ in range(_ROUNDS):
        shares = histogram.shares(pricing.thresholds * pricing.stretch)
        bits = -np.log2(np.maximum(shares, 1 / histogram.count))
        thresholds = _ascending(middles + bit * np.diff(bits) / (2 * gaps), gaps)
        before, pricing = (
            pricing,
            Pricing(thresholds, _least_stretch(histogram, thresholds, most_bits)),
        )
        if pricing.stretch == before.stretch and np.array_equal(thresholds, before.thresholds):
            break
    return pricing


def _least_stretch(histogram: RatioHistogram, thresholds: Floats, most_bits: float) -> float:
    """The least factor on the scales, and so on thresholds of old ratios, that saves enough."""

    def suffices(log_stretch: float) -> bool:
        return entropy(histogram.shares(thresholds * np.exp(log_stretch))) <= most_bits

    low, high = 0.0, _MOST_STRETCH
    if suffices(low):
        return 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return float(np.exp(high))


def _ascending(thresholds: Floats, gaps: Floats) -> Floats:
    """Thresholds between the levels that are worth choosing at all.

    Two thresholds in the wrong order leave the level between them without any ratio; its
    neighbors then meet at the mean of the two, weighted by the gaps. That is the lower envelope of
    the costs, found by pooling adjacent violators.
    """
    pools: list[tuple[float, float, int]] = []  # weighted sum, weight, how many
    for threshold, gap in zip(thresholds.tolist(), gaps.tolist(), strict=True):
        pools.append((threshold * gap, gap, 1))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            last, before = pools.pop(), pools.pop()
            pools.append((last[0] + before[0], last[1] + before[1], last[2] + before[2]))
    return np.repeat([pool[0] / pool[1] for pool in pools], [pool[2] for pool in pools])
