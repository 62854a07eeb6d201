"""Language models. ARCHITECTURES is the one table of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from quantized_lm.models.gpt2 import Gpt2, Gpt2Config
from quantized_lm.models.transformer import Transformer, TransformerConfig
from quantized_lm.models.tree_transformer import TreeTransformer

# The config class, and the model class that takes it.
ARCHITECTURES: Mapping[str, tuple[type[Any], type[TreeTransformer]]] = MappingProxyType(
    {
        "transformer": (TransformerConfig, Transformer),
        "gpt2": (Gpt2Config, Gpt2),
    }
)
