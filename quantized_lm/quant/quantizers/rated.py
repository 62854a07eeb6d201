"""Quantization in the loop at a given rate: the bits per weight that codes take at their entropy.

Learned scales that pay for bits: loss + lambda * bits per weight, with

    bits = mean over weights of a code length, interpolated between the two levels around
           weight / scale, so that it has a gradient; a level costs -log2 of its share of the codes,

and lambda moved by a controller so that the codes keep to their rate. At the start thresholds and
scales are those of pricing.py, which meet the rate with the least squared error: on a Gaussian the
best price of a bit is 0.13 to 0.15 squared steps at every rate from 1 to 2 bits. They cannot hold
it: in training weights gather at the thresholds, wherever those are, and a small move of all
thresholds flips many codes at once. Pure maths on one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantized_lm.errors import FormatError
from quantized_lm.quant.entropy import encode
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.learned import LearnedScale, LearnedSettings
from quantized_lm.quant.quantizers.levels import Levels
from quantized_lm.quant.quantizers.pricing import RatioHistogram, entropy, meet_rate

# The controller: lambda = exp(integral + _PROPORTIONAL * excess), excess in bits per weight; the
# integral grows by _INTEGRAL times its mean over the whole training. Weights answer late, and those
# gathered at a threshold all at once: twice the first lets rates swing, half of both lets them
# drift.
_PROPORTIONAL = 4.0
_INTEGRAL = 60.0
_RECODE = 0.02  # of training, between measurements of what the file takes beyond the entropy
_LOWEST, _HIGHEST = math.log(1e-5), math.log(1e2)


@dataclass(frozen=True)
class RatedSettings(LearnedSettings):
    """Settings of learned scales and the rate.

    Attributes:
        bits: per weight, codes at their entropy; a level table may take fewer. counts_file: count
            what the matrix takes in a file (quant/entropy.py) instead, with its scales and tables,
            which are a few hundredths of a bit, and rows of unlike codes, which give some back.
        one_price: hold the bits of all matrices that say so in sum (`OnePrice`), not of each.
        start_lambda: nats per token that one more bit in every weight costs, before the controller
            moves it.
        price: of a bit, in squared steps between levels, when thresholds are placed at the start; 0
            places them in the middle between levels.
        interval: updates between measurements of the rate.
    """

    bits: float = 2.0
    counts_file: bool = False
    one_price: bool = False
    start_lambda: float = 0.02
    price: float = 0.14
    interval: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.bits > 0 and self.start_lambda > 0):
            raise FormatError(
                f"bits is {self.bits}, start_lambda is {self.start_lambda}; need both above 0"
            )
        if not self.price >= 0:
            raise FormatError(f"price is {self.price}; need at least 0")
        if self.interval < 1:
            raise FormatError(f"interval is {self.interval}; need at least 1")


class RatedScale(LearnedScale):
    """A learned scale whose codes keep to a rate from the start to the end of training.

    Args:
        weight: (N, K) float32, what scales and thresholds are fitted to.
        grid: format and levels; one scale for a whole row or more.
        settings: see there.

    Attributes:
        code_bits: (L,) what a level costs.
        integral: of the controller. rate_weight: lambda. reached: progress at the last measurement.
        updates: made so far.
        share: of the weights under the same price that are this matrix's; 1 where it has its own.
        excess: bits per weight above the wanted ones, at the last measurement.
        overhead: bits per weight that the file takes beyond the entropy of the codes, where it
            counts; may be below 0. recoded: progress when that was measured.

    Raises:
        FormatError: weight, grid and settings do not fit together, or the grid has no level zero
            and what the file takes besides leaves the codes less than a bit.
    """

    code_bits: Tensor
    integral: Tensor
    rate_weight: Tensor
    reached: Tensor
    updates: Tensor
    excess: Tensor
    overhead: Tensor
    recoded: Tensor

    def __init__(self, weight: Tensor, grid: Grid, settings: RatedSettings) -> None:
        super().__init__(weight, grid, settings)
        if 0 not in grid.levels and settings.bits < 1:
            raise FormatError(f"bits is {settings.bits}; need at least 1 without a level zero")
        self.rating = settings
        self.share = 1.0
        self.levels = Levels(grid, moves=True).to(weight.device)
        self.register_buffer("code_bits", torch.zeros_like(self.levels.values))
        self.register_buffer("integral", torch.tensor(math.log(settings.start_lambda)))
        self.register_buffer("rate_weight", torch.tensor(settings.start_lambda))
        self.register_buffer("reached", torch.tensor(0.0))
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("excess", torch.tensor(0.0), persistent=settings.one_price)
        self.register_buffer("overhead", torch.tensor(0.0))
        self.register_buffer("recoded", torch.tensor(0.0))
        fitted = self.log_scale.detach().clone()
        self._meet_rate(weight)
        if settings.counts_file:
            self._measure_overhead(weight)
            self._require_bit(weight, grid)
            self.log_scale.data.copy_(fitted)
            self._meet_rate(weight)

    @torch.no_grad()
    def rate(self, weight: Tensor) -> float:
        """Bits per weight of an ideal code for this matrix's codes: their empirical entropy."""
        codes = self.levels.codes(weight / self._scale())
        counts = torch.bincount(codes.flatten().int(), minlength=len(self.levels))
        return entropy(counts.double().cpu().numpy() / codes.numel())

    def penalty(self, weight: Tensor) -> Tensor:
        """Lambda times the mean of the interpolated code lengths, in nats per token."""
        if len(self.levels) < 2:
            return weight.new_zeros(())
        levels = self.levels
        ratio = (weight / self._scale()).clamp(levels.lowest, levels.highest)
        cell = levels.cells(ratio.detach())
        slope = self.code_bits.diff() / levels.values.diff()
        offset = self.code_bits[:-1] - slope * levels.values[:-1]
        return self.rate_weight * (slope[cell] * ratio + offset[cell]).mean()

    @torch.no_grad()
    def step(self, weight: Tensor, progress: float) -> None:
        """Measure the rate every `interval` updates and after the last one, and move lambda."""
        self.updates += 1
        if progress >= 1 or int(self.updates) % self.rating.interval == 0:
            histogram = RatioHistogram.of(weight / self._scale(), self.levels.reach)
            if self.rating.counts_file and progress - float(self.recoded) >= _RECODE:
                self._measure_overhead(weight)
                self.recoded.fill_(progress)
            excess = self._price_levels(histogram) - self._entropy_bits()
            self.excess.fill_(excess)
            if not self.rating.one_price:
                self.move_price(excess, progress)

    @torch.no_grad()
    def move_price(self, excess: float, progress: float) -> None:
        """Set lambda by the bits per weight that are too many, after a share of the updates."""
        passed = progress - float(self.reached)
        self.integral += _INTEGRAL * excess * passed
        self.integral.clamp_(_LOWEST, _HIGHEST)
        exponent = self.integral + _PROPORTIONAL * excess
        self.rate_weight.copy_(self.share * exponent.clamp(_LOWEST, _HIGHEST).exp())
        self.reached.fill_(progress)

    @torch.no_grad()
    def _measure_overhead(self, weight: Tensor) -> None:
        """Code the matrix as it is and compare."""
        size_bytes = encode({"": self.quantize(weight)}).size_bytes[""]
        self.overhead.fill_(8 * size_bytes / weight.numel() - self.rate(weight))

    def _require_bit(self, weight: Tensor, grid: Grid) -> None:
        """Without a level zero, scales that leave less than signs do leave nothing of the weights.

        Raises:
            FormatError: only such scales would meet the rate.
        """
        if 0 not in grid.levels and self._entropy_bits() < min(1.0, self.rate(weight)):
            raise FormatError(
                f"bits is {self.rating.bits}, and scales and tables take "
                f"{float(self.overhead):.2f}; need 1 more than that without a level zero"
            )

    def _entropy_bits(self) -> float:
        """The rate at which the wanted bits come out."""
        return self.rating.bits - float(self.overhead)

    @torch.no_grad()
    def _meet_rate(self, weight: Tensor) -> None:
        """Place thresholds and stretch scales for the wanted rate, and price the levels."""
        ratio = weight / self._scale()
        pricing = meet_rate(
            RatioHistogram.of(ratio, self.levels.reach),
            self.levels.values.double().cpu().numpy(),
            most_bits=self._entropy_bits(),
            price=self.rating.price,
        )
        self.levels.move(torch.from_numpy(pricing.thresholds))
        self.log_scale.add_(math.log(pricing.stretch))
        self._price_levels(RatioHistogram.of(ratio / pricing.stretch, self.levels.reach))

    def _price_levels(self, histogram: RatioHistogram) -> float:
        """Set what levels cost to what an ideal code would; returns the rate."""
        shares = histogram.shares(self.levels.thresholds.double().cpu().numpy())
        self.code_bits.copy_(torch.from_numpy(-np.log2(np.maximum(shares, 1 / histogram.count))))
        return entropy(shares)


class OnePrice:
    """One price of a bit for several matrices, which so trade bits while they train.

    Their bits in sum are held, and a matrix pays for one more in all its weights in proportion to
    how many these are: a loss is least at a rate where the last bit buys the same everywhere
    (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988).

    Args:
        scales: each with the weight it is for; the price starts at the `start_lambda` of each.
    """

    def __init__(self, scales: Sequence[tuple[RatedScale, Tensor]]) -> None:
        self._scales = [scale for scale, _ in scales]
        total = sum(weight.numel() for _, weight in scales)
        for scale, weight in scales:
            scale.share = weight.numel() / total
            scale.rate_weight.fill_(scale.share * scale.rating.start_lambda)

    def step(self, progress: float) -> None:
        """Move the price, after all scales made their step; `progress` as there."""
        excess = sum(scale.share * float(scale.excess) for scale in self._scales)
        for scale in self._scales:
            scale.move_price(excess, progress)
