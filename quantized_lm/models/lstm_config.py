"""Sizes of the LSTM LM of `lstm.py`, and what it computes, as data."""

from __future__ import annotations

from dataclasses import dataclass

from quantized_lm.models.config import Shapes, Weights, in_layers, require_sizes
from quantized_lm.models.plan import LstmLayerPlan, LstmPlan

GATES = ("i", "f", "g", "o")  # input, forget, candidate, output: the order of torch's kernel


@dataclass(frozen=True)
class LstmConfig:
    """Sizes of an LSTM LM."""

    vocab_size: int
    num_layers: int
    model_dim: int
    max_tokens: int

    def __post_init__(self) -> None:
        """Refuse sizes that no model has."""
        require_sizes(
            self.max_tokens,
            vocab_size=self.vocab_size,
            num_layers=self.num_layers,
            model_dim=self.model_dim,
        )

    @property
    def table_bytes(self) -> int:
        """Memory to load beside the weights; none."""
        return 0

    def shapes(self) -> Shapes:
        """Every parameter's, in the order of the module."""
        dim = self.model_dim
        layer: Shapes = {}
        for gate in GATES:
            layer |= {f"input.{gate}.weight": (dim, dim), f"input.{gate}.bias": (dim,)}
        layer |= {f"recurrent.{gate}.weight": (dim, dim) for gate in GATES}
        return {
            "embedding.weight": (self.vocab_size, dim),
            **in_layers("layers", self.num_layers, layer),
        }

    def plan(self, weights: Weights) -> LstmPlan:
        """What the model computes, as data."""
        return LstmPlan(
            model_dim=self.model_dim,
            max_tokens=self.max_tokens,
            embedding=weights.packed["embedding.weight"],
            layers=tuple(
                LstmLayerPlan(
                    input=tuple(weights.projection(f"layers.{n}.input.{gate}") for gate in GATES),
                    recurrent=tuple(
                        weights.projection(f"layers.{n}.recurrent.{gate}") for gate in GATES
                    ),
                )
                for n in range(self.num_layers)
            ),
        )
