"""Ways to quantize a matrix without training it, by name.

"FORMAT" or "FORMAT:TABLE", such as "4bit:normal", rounds to nearest. With "@BITS" behind it codes
take so many bits per weight of a file, coded: what `method: rated` starts from.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rated import RatedScale, RatedSettings
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor

_AT = "@"
# From where a matrix is hardly there to where more bits buy nothing.
RATED_CHOICES = (
    "4bit:quinary@0.3",
    "4bit:quinary@0.6",
    "4bit:quinary@1",
    "4bit:quinary@1.5",
    "4bit:septenary@2.2",
    "4bit:symmetric@3",
)


def grid_of(choice: str) -> Grid:
    """Format and levels of a choice.

    Raises:
        FormatError: there is no such format, level table or rate.
    """
    rate_of(choice)
    return Grid.parse(choice.partition(_AT)[0])


def rate_of(choice: str) -> float | None:
    """Bits per weight that codes are to take; None for rounding to nearest.

    Raises:
        FormatError: what stands for the rate is no number above 0.
    """
    _, separator, text = choice.partition(_AT)
    if not separator:
        return None
    try:
        bits = float(text)
    except ValueError:
        bits = math.nan
    if not 0 < bits < math.inf:
        raise FormatError(f"{choice!r}: the rate is {text!r}; need bits per weight above 0")
    return bits


def quantized_as(choice: str, weight: NDArray[np.float32]) -> QuantizedTensor:
    """Quantize a matrix (N, K).

    Raises:
        FormatError: as `grid_of`, or the matrix cannot be quantized.
    """
    grid, bits = grid_of(choice), rate_of(choice)
    if bits is None:
        return round_to_nearest(weight, grid)
    matrix = torch.from_numpy(weight)
    return RatedScale(matrix, grid, RatedSettings(bits=bits, counts_file=True)).quantize(matrix)
