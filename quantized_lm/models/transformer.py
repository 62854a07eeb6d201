"""A small causal Transformer LM: the module.

Pre-norm blocks with rotary positions, normalized queries and keys, squared-ReLU feed-forward,
zero-initialized residual outputs and a learned mix of each block's input with the embedding
(Jordan et al., modded-nanogpt, 2024). Norms carry no gains but the last, so nothing sizeable is
left outside the packed matrices. Every large matrix is a projection or the tied embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantized_lm.models.dropout import Dropout
from quantized_lm.models.transformer_config import NORM_EPSILON, TransformerConfig
from quantized_lm.models.tree_transformer import Attend, TreeTransformer


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.heads = config.num_heads
        self.qkv: nn.Module = nn.Linear(dim, 3 * dim, bias=False)
        self.out: nn.Module = nn.Linear(dim, dim, bias=False)
        self.up: nn.Module = nn.Linear(dim, config.ffn_dim, bias=False)
        self.down: nn.Module = nn.Linear(config.ffn_dim, dim, bias=False)
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0]))  # of the stream and of the embedding
        self.drop = Dropout(0.0)

    def forward(self, x: Tensor, x0: Tensor, angles: Tensor, attend: Attend, layer: int) -> Tensor:
        """(..., dim) -> (..., dim); `attend` decides who sees whom."""
        x = self.mix[0] * x + self.mix[1] * x0
        qkv = self.qkv(_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(-3)
        mixed = attend(layer, _rotate(_norm(q), angles), _rotate(_norm(k), angles), v)
        x = x + self.drop(self.out(mixed.flatten(-2)))
        wide = functional.relu(self.up(_norm(x))).square()
        return x + self.drop(self.down(self.drop(wide)))  # type: ignore[no-any-return]


class Transformer(TreeTransformer):
    """The LM."""

    config: TransformerConfig
    rates: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.gain = nn.Parameter(torch.ones(config.model_dim))
        self.drop = Dropout(0.0)
        self.register_buffer("rates", torch.from_numpy(config.rope_rates), persistent=False)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the weights: outputs into the residual stream start at zero."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name == "embedding.weight":
                parameter.normal_(std=0.02, generator=generator)
            elif name.endswith(("qkv.weight", "up.weight")):
                parameter.normal_(std=0.8 * parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith(("out.weight", "down.weight")):
                parameter.zero_()

    def _window_positions(self, visible: Tensor) -> Tensor:
        """One range for the whole window: only differences of rotary positions matter."""
        return torch.arange(visible.shape[-1], device=visible.device)

    def _run(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Embedding, blocks, final norm. `positions` are broadcast against `tokens`."""
        angles = positions[..., None].float() * self.rates
        x0 = x = self.drop(_norm(self.embedding.embed(tokens)))
        for layer, block in enumerate(self.blocks):
            x = block(x, x0, angles, attend, layer)
        return self.drop(_norm(x) * self.gain)  # type: ignore[no-any-return]


def _norm(x: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), eps=NORM_EPSILON)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): (..., heads, head_dim) by (..., head_dim / 2) angles."""
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return turned.to(x.dtype)
