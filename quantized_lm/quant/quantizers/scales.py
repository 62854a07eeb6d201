"""Scales as they are stored: float16, with as many bits of mantissa as are wanted."""

from __future__ import annotations

import torch
from torch import Tensor

MANTISSA_BITS = 10
LARGEST_SCALE = 65504.0
_SMALLEST_SCALE = 2.0**-24
_SMALLEST_NORMAL = 2.0**-14
_FLOAT32_MANTISSA_BITS = 23


def stored_scale(scale: Tensor, mantissa_bits: int = MANTISSA_BITS) -> Tensor:
    """The nearest values that float16 holds with so many bits of mantissa, ties to even.

    Few bits leave few different scales, which compress well. Values past either end of float16
    become its largest or its smallest: a scale is never zero.

    Args:
        scale: (...) float32, at least 0.
        mantissa_bits: 0 (powers of two) to 10 (all of float16).

    Returns:
        (...) float32, without a gradient.
    """
    scale = scale.detach()
    if mantissa_bits < MANTISSA_BITS:
        dropped = _FLOAT32_MANTISSA_BITS - mantissa_bits
        bits = scale.view(torch.int32)
        bits = bits + (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
        scale = ((bits >> dropped) << dropped).view(torch.float32)
    return scale.clamp_max(LARGEST_SCALE).half().float().clamp_min(_SMALLEST_SCALE)


def scale_of(log_scale: Tensor, mantissa_bits: int = MANTISSA_BITS) -> Tensor:
    """exp(log_scale) as stored, above 0, with the gradient of the exact value: (...) float32."""
    exact = log_scale.exp().clamp(_SMALLEST_SCALE, LARGEST_SCALE)
    # The difference is exactly zero: it only carries the gradient.
    return stored_scale(exact, mantissa_bits) + (exact - exact.detach())


def log_of(scale: Tensor) -> Tensor:
    """Where to start learning a scale: that of an all-zero row must be able to leave zero.

    A smaller scale than float16's smallest normal number is raised to it: below, gradients are too
    small for Adam to see.
    """
    return scale.clamp_min(_SMALLEST_NORMAL).log()
