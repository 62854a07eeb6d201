"""What every architecture's config can tell, without torch: its parameters, and its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from quantized_lm.models.plan import Floats, ModelPlan, ProjectionPlan
from quantized_lm.ops import PackedWeight

Shapes = dict[str, tuple[int, ...]]  # of parameters, by name


@dataclass(frozen=True)
class Weights:
    """The parameters of a packed model.

    Attributes:
        packed: matrices, by name. plain: the others.
    """

    packed: Mapping[str, PackedWeight]
    plain: Mapping[str, Floats]

    def projection(self, path: str) -> ProjectionPlan:
        """What the projection at `path` computes."""
        return ProjectionPlan(self.packed[f"{path}.weight"], self.plain.get(f"{path}.bias"))


class ModelConfig(Protocol):
    """Sizes of a model, and what follows from them."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def model_dim(self) -> int:
        """Width of the embedding and of what the output layer takes."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest path from the root, root excluded."""
        ...

    def shapes(self) -> Shapes:
        """Every parameter's, in the order of the torch module of this architecture."""
        ...

    def plan(self, weights: Weights) -> ModelPlan:
        """What the model computes, as data."""
        ...


def in_layers(path: str, num_layers: int, layer: Shapes) -> Shapes:
    """The parameters of layers that are alike: `path.0.name` and so on."""
    return {
        f"{path}.{number}.{name}": shape
        for number in range(num_layers)
        for name, shape in layer.items()
    }


def is_packed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is packed: the matrices of projections and of the tied embedding."""
    return len(shape) == 2 and name.endswith(".weight")
