"""Quantizers by name: QUANTIZERS round a matrix, TRAINED_QUANTIZERS work inside a training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.admm import AdmmQuantizer, AdmmSettings
from quantized_lm.quant.quantizers.learned import LearnedScale, LearnedSettings
from quantized_lm.quant.quantizers.projection import quantize_by_projection
from quantized_lm.quant.quantizers.rated import RatedScale, RatedSettings
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.quantizers.sawb import SawbQuantizer, SawbSettings, quantize_by_sawb
from quantized_lm.quant.quantizers.trained import TrainedQuantizer
from quantized_lm.quant.tensor import QuantizedTensor

Quantizer = Callable[[NDArray[np.float32], Grid], QuantizedTensor]

QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType(
    {"rtn": round_to_nearest, "admm": quantize_by_projection, "sawb": quantize_by_sawb}
)


@dataclass(frozen=True)
class TrainedQuantizerEntry:
    """How to make one.

    Attributes:
        settings: frozen dataclass of what a recipe may set; every field has a default.
        make: from the float weight (N, K) float32, its grid and settings.
    """

    settings: type[Any]
    make: Callable[[Tensor, Grid, Any], TrainedQuantizer]


TRAINED_QUANTIZERS: Mapping[str, TrainedQuantizerEntry] = MappingProxyType(
    {
        "learned": TrainedQuantizerEntry(LearnedSettings, LearnedScale),
        "admm": TrainedQuantizerEntry(AdmmSettings, AdmmQuantizer),
        "sawb": TrainedQuantizerEntry(SawbSettings, SawbQuantizer),
        "rated": TrainedQuantizerEntry(RatedSettings, RatedScale),
    }
)
