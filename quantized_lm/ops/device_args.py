"""What the GPU's kernels are given besides weights: tensors of one device that belong together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """Rounded rows.

    Attributes:
        codes: (.., K) int8. step: (..,) float32.
        nodes: (M,) int32, which of these rows each row of a product is; None for its own.
    """

    codes: Tensor
    step: Tensor
    nodes: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm before the rounding.

    Attributes:
        kind: key in NORMS. gain, bias: (dim,) float32 or None.
    """

    kind: str | None = None
    epsilon: float = 0.0
    gain: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Mix:
    """x = stream * x + embedding * first."""

    first: Tensor
    stream: float
    embedding: float


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What becomes of a product: y (+)= activation(product + bias)."""

    bias: Tensor | None = None
    activation: str | None = None
    adds: bool = False


@dataclass(frozen=True, eq=False)
class Heads:
    """How attention is cut.

    Attributes:
        cos, sin: (depths, dim / 2) float32 or None. epsilon: of the norm of queries and keys; None
            where they are not normalized.
    """

    count: int
    dim: int
    cos: Tensor | None
    sin: Tensor | None
    epsilon: float | None


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes of trees, each (num,) int32.

    Attributes:
        token, depth: of the node. slot: where it is kept. parent: the slot above it.
        start: where in the paths its own begins.
    """

    token: Tensor
    depth: Tensor
    slot: Tensor
    parent: Tensor
    start: Tensor


@dataclass(frozen=True, eq=False)
class Level:
    """Nodes of one level of a pass, each (num,) int32.

    Attributes:
        member: row among those of the pass. slot: where it is kept. above: its parent's slot.
    """

    member: Tensor
    slot: Tensor
    above: Tensor
