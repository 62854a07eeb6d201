"""The places where a model touches a large matrix, float for training, packed to serve.

Float and packed layers answer the same calls, so that a model's code is written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from quantized_lm.models.base import LanguageModel
from quantized_lm.models.packed import engine_of, require_fit
from quantized_lm.ops import Backend, PackedWeight
from quantized_lm.ops.embedding import embed
from quantized_lm.ops.linear import linear
from quantized_lm.ops.output import gather_log_prob
from quantized_lm.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from quantized_lm.models.float_model import FloatModel


class TiedEmbedding(nn.Module):
    """Float embedding whose matrix is also the output layer."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (..., dim)."""
        return functional.embedding(tokens, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., vocab)."""
        return functional.linear(hidden, self.weight)

    def log_prob(self, hidden: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """Log P(tokens[c] | hidden[rows[c]]): (M, dim), (C,), (C,) -> (C,) float32."""
        logits = self.logits(hidden).float()
        return logits[rows, tokens] - logits.logsumexp(-1)[rows]


class PackedLinear(nn.Module):
    """A projection whose matrix stays packed; its bias is plain. No gradient flows through it."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(M, K) float32 -> (M, N) float32."""
        return linear(x.contiguous(), self.weight, self.bias)


class PackedEmbedding(nn.Module):
    """A tied embedding whose matrix stays packed."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.weight = weight

    def embed(self, tokens: Tensor) -> Tensor:
        """(M,) int64 -> (M, dim) float32."""
        return embed(self.weight, tokens)

    def log_prob(self, hidden: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """Log P(tokens[c] | hidden[rows[c]]): (M, dim), (C,), (C,) -> (C,) float32."""
        return gather_log_prob(hidden.contiguous(), self.weight, rows, tokens)


def matrix_names(model: nn.Module) -> list[str]:
    """Parameters that are packed: those of projections and of the tied embedding, in order."""
    return [
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | TiedEmbedding)
    ]


def load_packed(
    model: FloatModel,
    packed: Mapping[str, QuantizedTensor],
    plain: Mapping[str, NDArray[np.float32]],
    backend: Backend,
) -> LanguageModel:
    """Turn a float model into a packed one, in place.

    Args:
        packed: one tensor for each of `matrix_names(model)`.
        plain: every other parameter.
        backend: lays the packed tensors out and computes with them.

    Returns:
        What to score with: the native engine's model on the cpu backend, the device's on the triton
        backend, else the module itself.

    Raises:
        FormatError: a tensor is missing, unexpected or of another shape; names it.
    """
    require_fit(model.config.shapes(), packed, plain)
    parameters = dict(model.named_parameters())
    for name, tensor in packed.items():
        path = name.removesuffix(".weight")
        module, weight = model.get_submodule(path), backend.prepare(tensor)
        if isinstance(module, nn.Linear):
            model.set_submodule(path, PackedLinear(weight, module.bias))
        else:
            model.set_submodule(path, PackedEmbedding(weight))
    for name, array in plain.items():
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(array))
    model.requires_grad_(requires_grad=False)
    return model if backend.name == "reference" else engine_of(model.plan(), backend)


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """The packed matrices of a model, by name."""
    return {
        f"{path}.weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, PackedLinear | PackedEmbedding)
    }
