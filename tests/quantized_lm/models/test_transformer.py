"""Claims about the Transformer's own config and weights."""

from __future__ import annotations

import pytest
import torch

from quantized_lm.errors import ShapeError
from quantized_lm.models.transformer import Transformer
from quantized_lm.models.transformer_config import TransformerConfig


def test_heads_must_have_an_even_width() -> None:
    with pytest.raises(ShapeError, match="no even number"):
        TransformerConfig(8, 1, 30, 4, 8, 8)


def test_blocks_start_as_the_identity() -> None:
    model = Transformer(TransformerConfig(8, 2, 16, 2, 8, 8))
    model.initialize(seed=1)
    tokens = torch.tensor([[0, 3, 4]])
    without = Transformer(TransformerConfig(8, 0, 16, 2, 8, 8))
    without.load_state_dict(model.state_dict(), strict=False)
    nothing = torch.zeros_like(tokens)
    assert torch.equal(model(tokens, nothing), without(tokens, nothing))
