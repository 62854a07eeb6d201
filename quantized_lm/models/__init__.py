"""Language models. ARCHITECTURES is the one table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.gpt2 import Gpt2, Gpt2Config
from quantized_lm.models.lstm import Lstm, LstmConfig
from quantized_lm.models.transformer import Transformer, TransformerConfig

# The config class, and the model that takes it.
ARCHITECTURES: Mapping[str, tuple[type[Any], Callable[[Any], FloatModel]]] = MappingProxyType(
    {
        "transformer": (TransformerConfig, Transformer),
        "gpt2": (Gpt2Config, Gpt2),
        "lstm": (LstmConfig, Lstm),
    }
)
