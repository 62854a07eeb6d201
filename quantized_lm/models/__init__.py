"""Language models. ARCHITECTURES is the one table of them."""

from __future__ import annotations

from quantized_lm.models.transformer import Transformer, TransformerConfig

ARCHITECTURES = {"transformer": (TransformerConfig, Transformer)}
