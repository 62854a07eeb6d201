"""A small model of every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quantized_lm.models import ARCHITECTURES
from quantized_lm.models.float_model import FloatModel

SIZES: dict[str, Any] = {"vocab_size": 23, "num_layers": 2, "model_dim": 32, "max_tokens": 64}
ATTENTION: dict[str, Any] = {"num_heads": 2, "ffn_dim": 48}
OWN_SIZES = {"transformer": ATTENTION, "gpt2": ATTENTION, "lstm": {}}


@pytest.fixture(params=ARCHITECTURES, scope="session")
def model(request: pytest.FixtureRequest) -> FloatModel:
    """Random weights, those that start at zero or one too. Not to be changed."""
    config_class, model_class = ARCHITECTURES[request.param]
    model = model_class(config_class(**SIZES, **OWN_SIZES[request.param]))
    model.initialize(seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model.requires_grad_(requires_grad=False)
