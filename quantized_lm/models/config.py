"""What every architecture's config can tell, without torch: its parameters, and its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from quantized_lm.errors import ShapeError
from quantized_lm.models.plan import Floats, ModelPlan, ProjectionPlan
from quantized_lm.ops import PackedWeight

MAX_TOKENS = 1 << 16  # some tables have a row for each depth, whatever the weights are
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
    def num_layers(self) -> int:
        """Layers that are alike, each with parameters of its own."""
        ...

    @property
    def model_dim(self) -> int:
        """Width of the embedding and of what the output layer takes."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest path from the root, root excluded; 1 to MAX_TOKENS."""
        ...

    @property
    def table_bytes(self) -> int:
        """Memory to load beside the weights: for tables that no tensor holds."""
        ...

    def shapes(self) -> Shapes:
        """Every parameter's, in the order of the torch module of this architecture."""
        ...

    def plan(self, weights: Weights) -> ModelPlan:
        """What the model computes, as data."""
        ...


def require_sizes(max_tokens: int, **sizes: int) -> None:
    """Pass if a model can have these sizes.

    Raises:
        ShapeError: one is below 1, or max_tokens above MAX_TOKENS; names it.
    """
    for name, size in {"max_tokens": max_tokens, **sizes}.items():
        if size < 1:
            raise ShapeError(f"{name} is {size}; need 1 or more")
    if max_tokens > MAX_TOKENS:
        raise ShapeError(f"max_tokens is {max_tokens}; need at most {MAX_TOKENS}")


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
