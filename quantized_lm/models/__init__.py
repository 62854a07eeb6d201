"""Language models. ARCHITECTURES is the one table of them.

What they compute is known without torch; only their modules, which train and which define what is
right, are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from quantized_lm.models.gpt2_config import Gpt2Config
from quantized_lm.models.lstm_config import LstmConfig
from quantized_lm.models.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from quantized_lm.models.float_model import FloatModel


def _transformer(config: TransformerConfig) -> FloatModel:
    from quantized_lm.models.transformer import Transformer  # noqa: PLC0415 - torch's

    return Transformer(config)


def _gpt2(config: Gpt2Config) -> FloatModel:
    from quantized_lm.models.gpt2 import Gpt2  # noqa: PLC0415 - torch's

    return Gpt2(config)


def _lstm(config: LstmConfig) -> FloatModel:
    from quantized_lm.models.lstm import Lstm  # noqa: PLC0415 - torch's

    return Lstm(config)


# The config class, and what makes a torch module of a config.
ARCHITECTURES: Mapping[str, tuple[type[Any], Callable[[Any], FloatModel]]] = MappingProxyType(
    {
        "transformer": (TransformerConfig, _transformer),
        "gpt2": (Gpt2Config, _gpt2),
        "lstm": (LstmConfig, _lstm),
    }
)
