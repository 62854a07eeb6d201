"""Token trees: hypotheses that share a prefix share its nodes. Knows nothing of models or text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm import _tokens
from quantized_lm.tokenizer import BOUNDARY_ID


@dataclass(frozen=True)
class TokenTree:
    """One list of hypotheses as a tree.

    Attributes:
        token: (n,) int32. Node 0 is the boundary symbol, nodes 1..base the context.
        parent: (n,) int32, parents first; the root's is -1.
        base: the node every hypothesis starts from.
        leaf: (H,) int32, the node at which each hypothesis ends, its `</s>` when final.
        path_node: (P,) int32, the nodes of every hypothesis, first token to leaf, path after path.
        path_length: (H,) int64, nodes of each path.
    """

    token: NDArray[np.int32]
    parent: NDArray[np.int32]
    base: int
    leaf: NDArray[np.int32]
    path_node: NDArray[np.int32]
    path_length: NDArray[np.int64]

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
        return self.base + int(self.path_length.max(initial=0))

    def path(self, hypothesis: int) -> NDArray[np.int32]:
        """Node ids of one hypothesis, first token to leaf; empty for an unfinished empty text."""
        start = int(self.path_length[:hypothesis].sum())
        return self.path_node[start : start + int(self.path_length[hypothesis])]


def build_tree(
    sequences: Sequence[Sequence[int]], *, context: Sequence[int] = (), final: bool = True
) -> TokenTree:
    """Merge token sequences by their prefixes; equal sequences end in one leaf.

    Args:
        sequences: token ids per hypothesis, without the boundary symbol.
        context: token ids before them, each earlier text ended by the boundary symbol.
        final: whether `</s>` is appended to each sequence.
    """
    ending = (BOUNDARY_ID,) if final else ()
    ids = [token for sequence in sequences for token in (*sequence, *ending)]
    lengths = np.array([len(sequence) + len(ending) for sequence in sequences], np.int64)
    return merge_prefixes(np.array(ids, np.int32), lengths, context=context)


def merge_prefixes(
    ids: NDArray[np.int32], lengths: NDArray[np.int64], *, context: Sequence[int] = ()
) -> TokenTree:
    """`build_tree` of H sequences that stand one after another, whole as they are.

    Sorted, sequences that share a prefix are neighbors, so a token needs a new node exactly from
    the first difference to the sequence above on. Nodes are numbered in that order: depth first.

    Args:
        ids: (sum of lengths,) int32, non-negative.
        lengths: (H,) int64.
        context: as `build_tree`.
    """
    stem = [BOUNDARY_ID, *context]
    token, parent, leaf, path_node = _tokens.merge_prefixes(stem, ids, lengths)
    return TokenTree(token, parent, len(context), leaf, path_node, lengths)


def path_sums(values: NDArray[np.generic], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """(H,) float64, sums of `lengths` consecutive values each; an empty path adds up to 0."""
    starts = lengths.cumsum() - lengths
    is_path = lengths > 0
    if len(starts) and is_path.all():  # `reduceat` has no empty sums
        return np.add.reduceat(values, starts, dtype=np.float64)
    sums = np.zeros(len(lengths), np.float64)
    if is_path.any():
        sums[is_path] = np.add.reduceat(values, starts[is_path], dtype=np.float64)
    return sums
