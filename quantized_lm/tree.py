"""Token trees: hypotheses that share a prefix share its nodes. Knows nothing of models or text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.tokenizer import BOUNDARY_ID


@dataclass(frozen=True)
class TokenTree:
    """One list of hypotheses as a tree.

    Attributes:
        token: (n,) int32. Node 0 is the boundary symbol, nodes 1..base the context.
        parent: (n,) int32, parents first; the root's is -1.
        base: the node every hypothesis starts from.
        leaf: (H,) int32, the node at which each hypothesis ends, its `</s>` when final.
    """

    token: NDArray[np.int32]
    parent: NDArray[np.int32]
    base: int
    leaf: NDArray[np.int32]

    @property
    def num_nodes(self) -> int:
        """All nodes, root and context included."""
        return len(self.token)

    @property
    def num_scored(self) -> int:
        """Nodes whose log-probability is computed: those after the base."""
        return self.num_nodes - self.base - 1

    @property
    def depth(self) -> int:
        """Tokens on the longest path, root excluded."""
        depth = np.zeros(self.num_nodes, dtype=np.int64)
        for node in range(1, self.num_nodes):
            depth[node] = depth[self.parent[node]] + 1
        return int(depth.max())

    def path(self, hypothesis: int) -> NDArray[np.int32]:
        """Node ids of one hypothesis, first token to leaf; empty for an unfinished empty text."""
        nodes: list[int] = []
        node = int(self.leaf[hypothesis])
        while node > self.base:
            nodes.append(node)
            node = int(self.parent[node])
        return np.asarray(nodes[::-1], dtype=np.int32)


def build_tree(
    sequences: Sequence[Sequence[int]], *, context: Sequence[int] = (), final: bool = True
) -> TokenTree:
    """Merge token sequences by their prefixes; equal sequences end in one leaf.

    Args:
        sequences: token ids per hypothesis, without the boundary symbol.
        context: token ids before them, each earlier text ended by the boundary symbol.
        final: whether `</s>` is appended to each sequence.
    """
    token = [BOUNDARY_ID, *context]
    parent = list(range(-1, len(context)))
    base = len(context)
    children: dict[tuple[int, int], int] = {}
    leaves: list[int] = []
    ending = (BOUNDARY_ID,) if final else ()
    for sequence in sequences:
        node = base
        for symbol in (*sequence, *ending):
            child = children.get((node, symbol))
            if child is None:
                child = len(token)
                children[node, symbol] = child
                token.append(symbol)
                parent.append(node)
            node = child
        leaves.append(node)
    return TokenTree(
        np.asarray(token, dtype=np.int32),
        np.asarray(parent, dtype=np.int32),
        base,
        np.asarray(leaves, dtype=np.int32),
    )
