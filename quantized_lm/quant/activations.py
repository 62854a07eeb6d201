"""Activations as int8 codes, one step per row: what the integer kernels multiply with.

x[m, k] is about code[m, k] * step[m]. Every line is one float32 operation in a stated order, so
that native code can reproduce it bit for bit. Knows no kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from quantized_lm.errors import FormatError, ShapeError
from quantized_lm.quant.formats import QUAD

LARGEST_CODE = 127
# The magnitudes of four codes add up to at most 255: four roundings by a half leave 253.
_LARGEST_QUAD = 253
# Steps below make the row zero. It is so far above the smallest normal number that no subnormal
# can change a code or a result: code that flushes them agrees with code that does not.
_SMALLEST_STEP = 2.0**-100


@dataclass(frozen=True, eq=False)
class QuantizedActivations:
    """Rows of int8 codes.

    Attributes:
        codes: (M, K) int8, each in [-127, 127].
        step: (M,) float32, what a code of one stands for; 0 for a row of zeros, NaN for a row
            that cannot be quantized: with zero codes it makes every product of the row NaN.
    """

    codes: Tensor
    step: Tensor


def _step_of_largest(x: Tensor) -> Tensor:
    """The largest magnitude becomes 127: (M, K) to (M,)."""
    return x.abs().amax(dim=1) / LARGEST_CODE


def _step_of_quads(x: Tensor) -> Tensor:
    """As above, and the magnitudes of four codes in a row add up to at most 255."""
    padded = functional.pad(x.abs(), (0, -x.shape[1] % QUAD))
    quads = padded.reshape(len(x), padded.shape[1] // QUAD, QUAD)
    sums = (quads[..., 0] + quads[..., 1]) + (quads[..., 2] + quads[..., 3])
    return torch.maximum(_step_of_largest(x), sums.amax(dim=1) / _LARGEST_QUAD)


# Which one a product uses is a property of the weight's format: `PackedFormat.activation_rule`.
ACTIVATION_RULES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"absmax": _step_of_largest, "quads": _step_of_quads}
)


def quantize_activations(x: Tensor, rule: str) -> QuantizedActivations:
    """Round every row to multiples of its own step.

    absmax = max over k of |x[k]|, quad = max over groups of four consecutive columns, padded with
    zeros, of (|x0| + |x1|) + (|x2| + |x3|)
    step = absmax / 127 (rule "absmax") or max(absmax / 127, quad / 253) (rule "quads")
    code[k] = round to nearest, ties to even, of x[k] * (1 / step)

    A step below 2^-100 makes the row zero: step 0, codes 0. A step that is no number or infinite
    makes it NaN: step NaN, codes 0.

    Args:
        x: (M, K) float32, K at least 1.
        rule: key in ACTIVATION_RULES.

    Raises:
        FormatError: there is no such rule.
        ShapeError: x is no float32 matrix with columns.
    """
    if rule not in ACTIVATION_RULES:
        known = ", ".join(ACTIVATION_RULES)
        raise FormatError(f"no activation rule is named {rule!r}; known are {known}")
    if x.ndim != 2 or x.dtype != torch.float32 or x.shape[1] < 1:
        raise ShapeError(f"x is {x.dtype} {tuple(x.shape)}; need a float32 matrix with columns")
    step = ACTIVATION_RULES[rule](x)
    is_number = torch.isfinite(step)
    is_zero = step < _SMALLEST_STEP
    has_codes = is_number & ~is_zero
    inverse = 1 / step.where(has_codes, 1.0)
    codes = (x * inverse[:, None]).round().where(has_codes[:, None], 0.0)
    step = step.where(~is_zero, 0.0).where(is_number, torch.nan)
    return QuantizedActivations(codes.to(torch.int8), step)
