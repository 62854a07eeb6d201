"""Sizes of the GPT-2 of `gpt2.py`, and what it computes, as data."""

from __future__ import annotations

from dataclasses import dataclass

from quantized_lm.errors import ShapeError
from quantized_lm.models.config import Shapes, Weights, in_layers
from quantized_lm.models.plan import BlockPlan, NormPlan, TransformerPlan
from quantized_lm.models.transformer_config import TreeTransformerConfig, block_plan


@dataclass(frozen=True)
class Gpt2Config(TreeTransformerConfig):
    """Sizes of a GPT-2."""

    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse heads of different widths, and norms that could divide by zero."""
        super().__post_init__()
        if self.model_dim % self.num_heads:
            raise ShapeError(
                f"model_dim {self.model_dim} over num_heads {self.num_heads} is no whole number"
            )
        if not 0 < self.norm_epsilon < 1:
            raise ShapeError(f"norm_epsilon is {self.norm_epsilon}; need more than 0, less than 1")

    def shapes(self) -> Shapes:
        """Every parameter's, in the order of the module."""
        dim, ffn = self.model_dim, self.ffn_dim
        block: Shapes = {
            "attention_norm.weight": (dim,),
            "attention_norm.bias": (dim,),
            "qkv.weight": (3 * dim, dim),
            "qkv.bias": (3 * dim,),
            "out.weight": (dim, dim),
            "out.bias": (dim,),
            "ffn_norm.weight": (dim,),
            "ffn_norm.bias": (dim,),
            "up.weight": (ffn, dim),
            "up.bias": (ffn,),
            "down.weight": (dim, ffn),
            "down.bias": (dim,),
        }
        return {
            "positions": (self.max_tokens + 1, dim),
            "embedding.weight": (self.vocab_size, dim),
            **in_layers("blocks", self.num_layers, block),
            "final_norm.weight": (dim,),
            "final_norm.bias": (dim,),
        }

    def plan(self, weights: Weights) -> TransformerPlan:
        """What the model computes, as data."""
        return TransformerPlan(
            model_dim=self.model_dim,
            num_heads=self.num_heads,
            ffn_dim=self.ffn_dim,
            max_tokens=self.max_tokens,
            embedding=weights.packed["embedding.weight"],
            positions=weights.plain["positions"],
            rope_rates=None,
            normalizes_embedding=False,
            normalizes_qk=False,
            norm_epsilon=self.norm_epsilon,
            activation="gelu_tanh",
            blocks=tuple(self._block(weights, f"blocks.{n}") for n in range(self.num_layers)),
            final_norm=self._norm(weights, "final_norm"),
        )

    def _block(self, weights: Weights, path: str) -> BlockPlan:
        attention_norm = self._norm(weights, f"{path}.attention_norm")
        ffn_norm = self._norm(weights, f"{path}.ffn_norm")
        return block_plan(weights, path, attention_norm, ffn_norm, mix=(1.0, 0.0))

    def _norm(self, weights: Weights, path: str) -> NormPlan:
        gain, bias = weights.plain[f"{path}.weight"], weights.plain[f"{path}.bias"]
        return NormPlan(gain, bias, self.norm_epsilon, subtracts_mean=True)
