"""Sizes of the small Transformer LM of `transformer.py`, and what it computes, as data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from quantized_lm.errors import ShapeError
from quantized_lm.models.config import Shapes, Weights, in_layers, require_sizes
from quantized_lm.models.plan import BlockPlan, Floats, NormPlan, TransformerPlan
from quantized_lm.tensor_entry import FLOAT_BYTES

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class TreeTransformerConfig(ABC):
    """Sizes that every Transformer has; see `ModelConfig`."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    ffn_dim: int
    max_tokens: int

    def __post_init__(self) -> None:
        """Refuse sizes that no model has. One without layers is embedding and norm alone."""
        require_sizes(
            self.max_tokens,
            vocab_size=self.vocab_size,
            model_dim=self.model_dim,
            num_heads=self.num_heads,
            ffn_dim=self.ffn_dim,
        )
        if self.num_layers < 0:
            raise ShapeError(f"num_layers is {self.num_layers}; need 0 or more")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.model_dim // self.num_heads

    @property
    def table_bytes(self) -> int:
        """Memory to load beside the weights; none."""
        return 0

    @abstractmethod
    def shapes(self) -> Shapes:
        """Every parameter's, in the order of the module."""

    @abstractmethod
    def plan(self, weights: Weights) -> TransformerPlan:
        """What the model computes, as data."""


@dataclass(frozen=True)
class TransformerConfig(TreeTransformerConfig):
    """Sizes of a Transformer LM."""

    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        """Refuse heads that cannot be turned by halves, and rates that are none."""
        super().__post_init__()
        if self.model_dim % (2 * self.num_heads):
            raise ShapeError(
                f"model_dim {self.model_dim} over num_heads {self.num_heads} is no even number"
            )
        if not (math.isfinite(self.rope_base) and self.rope_base >= 1):
            raise ShapeError(f"rope_base is {self.rope_base}; need a finite number of 1 or more")

    @property
    def rope_rates(self) -> Floats:
        """(head_dim / 2,) float32: radians per unit of depth (Su et al., 2021)."""
        half = self.head_dim // 2
        return (self.rope_base ** -(np.arange(half) / half)).astype(np.float32)

    @property
    def table_bytes(self) -> int:
        """Memory to load beside the weights: cosines and sines by depth, and an engine's copies."""
        return 4 * FLOAT_BYTES * (self.max_tokens + 1) * (self.head_dim // 2)

    def shapes(self) -> Shapes:
        """Every parameter's, in the order of the module."""
        dim, ffn = self.model_dim, self.ffn_dim
        block: Shapes = {
            "mix": (2,),
            "qkv.weight": (3 * dim, dim),
            "out.weight": (dim, dim),
            "up.weight": (ffn, dim),
            "down.weight": (dim, ffn),
        }
        return {
            "gain": (dim,),
            "embedding.weight": (self.vocab_size, dim),
            **in_layers("blocks", self.num_layers, block),
        }

    def plan(self, weights: Weights) -> TransformerPlan:
        """What the model computes, as data."""
        return TransformerPlan(
            model_dim=self.model_dim,
            num_heads=self.num_heads,
            ffn_dim=self.ffn_dim,
            max_tokens=self.max_tokens,
            embedding=weights.packed["embedding.weight"],
            positions=None,
            rope_rates=self.rope_rates,
            normalizes_embedding=True,
            normalizes_qk=True,
            norm_epsilon=NORM_EPSILON,
            activation="squared_relu",
            blocks=tuple(_block(weights, f"blocks.{n}") for n in range(self.num_layers)),
            final_norm=NormPlan(weights.plain["gain"], None, NORM_EPSILON, subtracts_mean=False),
        )


def _block(weights: Weights, path: str) -> BlockPlan:
    norm = NormPlan(None, None, NORM_EPSILON, subtracts_mean=False)
    stream, embedding = weights.plain[f"{path}.mix"].tolist()
    return block_plan(weights, path, norm, norm, mix=(stream, embedding))


def block_plan(
    weights: Weights,
    path: str,
    attention_norm: NormPlan,
    ffn_norm: NormPlan,
    *,
    mix: tuple[float, float],
) -> BlockPlan:
    """The block at `path`, whose projections every Transformer names alike."""
    return BlockPlan(
        attention_norm=attention_norm,
        ffn_norm=ffn_norm,
        qkv=weights.projection(f"{path}.qkv"),
        out=weights.projection(f"{path}.out"),
        up=weights.projection(f"{path}.up"),
        down=weights.projection(f"{path}.down"),
        mix=mix,
    )
