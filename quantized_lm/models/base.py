"""The one interface to a language model: trees of tokens in, log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quantized_lm.ops.backend import Residency

TreeState = Any  # opaque to callers; each architecture keeps what it needs per node


class LanguageModel(Protocol):
    """A causal LM that scores token trees.

    A state is a tree that grows. Node 0 is the boundary symbol, nodes 1..len(context) the context;
    `extend` appends nodes, numbered on from there.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest path from the root, root excluded."""
        ...

    def new_state(self, context: Sequence[int] = ()) -> TreeState:
        """A tree that holds the root and the context path. Runs nothing."""
        ...

    def fork(self, state: TreeState, nodes: NDArray[np.int32]) -> TreeState:
        """A new tree of some nodes of another. What was run of them is not run again.

        It may be kept for long: it holds hardly more memory than it needs, also when it grows.

        Args:
            state: a tree of this model, not changed.
            nodes: (n,) int32, ids: the root's first, each once and after its parent's.

        Raises:
            ShapeError: `nodes` is something else.
        """
        ...

    def state_bytes(self, state: TreeState) -> int:
        """Memory that a tree holds, about."""
        ...

    def extend(
        self,
        states: Sequence[TreeState],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Append nodes to several trees in one forward pass.

        Only nodes with children are run through the network, each once in its life.

        Args:
            states: trees, changed in place.
            parents: per tree (n,) int32, ids of nodes that exist or come earlier in the array.
            tokens: per tree (n,) int32.

        Returns:
            Per tree (n,) float32, log P(token | path to parent), natural log.
        """
        ...


@runtime_checkable
class Resident(Protocol):
    """A model whose matrices need not lie in memory as they were packed."""

    @property
    def residency(self) -> Residency:
        """How they lie."""
        ...


@runtime_checkable
class Satiable(Protocol):
    """A model that more nodes in one call do not make any faster, once there are so many."""

    @property
    def ample_nodes(self) -> int | None:
        """How many; None where more are always better."""
        ...
