"""QUANTIZERS: name -> function from a float weight and a grid to a QuantizedTensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor

Quantizer = Callable[[NDArray[np.float32], Grid], QuantizedTensor]

QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType({"rtn": round_to_nearest})
