"""Which nodes of a token tree have to be scored to know the best hypothesis, wave by wave.

A log-probability is never above 0, so what has been scored of a hypothesis bounds its total from
above, wherever a total does not fall as the LM's score rises. A hypothesis whose bound is below a
total that is complete cannot win, and the rest of it need not be run. The winner and its total are
those of scoring everything. Knows nothing of models or text: it says what to score, and is told.

A wave is one forward pass, which takes time of its own. So each takes every hypothesis as far as
it has to come before it is expected to lose, and completes the most promising one, which raises
the total that the others have to reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.tree import TokenTree, path_sums

Floats = NDArray[np.float64]
Nodes = NDArray[np.int64]
# (H,) log-probabilities of the LM, nats -> (H,) totals, none of which falls where one rises.
TotalOf = Callable[[Floats], Floats]

TYPICAL_NATS = 4.0  # what a token costs, until some of this tree have been scored
MOST_WAVES = 5
FEWEST_NODES = 128  # of a tree that is worth more than one wave
ROUNDING_NATS = 1e-3  # log-probabilities are rounded, and so may add up to a little more than 0


@dataclass(frozen=True)
class Wave:
    """Nodes to score in one forward pass, as `LanguageModel.extend` takes them."""

    parents: NDArray[np.int32]
    tokens: NDArray[np.int32]


class Search:
    """The scoring of all of one tree, in one wave.

    Attributes:
        log_prob: (n,) float32, nats, of each node that is known; 0 up to the base.
        is_known: (n,) bool.
    """

    def __init__(self, tree: TokenTree) -> None:
        self.log_prob = np.zeros(tree.num_nodes, np.float32)
        self.is_known = np.arange(tree.num_nodes) <= tree.base
        self._tree = tree

    def next_wave(self) -> Wave | None:
        """What to score next; None once all that is wanted is known."""
        scored = slice(self._tree.base + 1, None)
        is_over = bool(self.is_known[-1])
        return None if is_over else Wave(self._tree.parent[scored], self._tree.token[scored])

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Take the answer to the last wave."""
        self.log_prob[self._tree.base + 1 :] = log_prob
        self.is_known[:] = True

    @property
    def num_run(self) -> int:
        """Nodes that went through the network, those of the context included."""
        return int(np.count_nonzero(np.bincount(self._tree.parent[1:][self.is_known[1:]])))


class BestSearch(Search):
    """The scoring of as much of one tree as shows which hypothesis is the best.

    That is the one of the highest total, the first of them where several are equal.

    Args:
        tree: what there is to score.
        total_of: makes totals of log-probabilities.
    """

    def __init__(self, tree: TokenTree, total_of: TotalOf) -> None:
        super().__init__(tree)
        self._total_of = total_of
        self._waves = 0
        self._nodes: Nodes = np.zeros(0, np.int64)
        self._number = np.arange(tree.num_nodes, dtype=np.int32)  # in the model's state
        starts = np.cumsum(tree.path_length) - tree.path_length
        self._hypothesis = np.repeat(np.arange(len(starts)), tree.path_length)  # (P,)
        self._position = np.arange(len(tree.path_node)) - starts[self._hypothesis]  # (P,)

    def next_wave(self) -> Wave | None:
        """What to score next; None once nothing that is open can win."""
        length, path = self._tree.path_length, self._tree.path_node
        so_far = path_sums(self.log_prob[path], length)
        left = length - path_sums(self.is_known[path], length).astype(np.int64)
        bound = self._total_of(so_far + np.where(left, ROUNDING_NATS, 0.0))
        expected = self._total_of(so_far - left * self._nats_per_token())
        is_open = left > 0
        if self._waves:
            to_beat = bound[~is_open].max()
            is_open &= bound >= to_beat
        else:
            to_beat = expected.max()
        if not is_open.any():
            return None
        steps = self._steps(bound - to_beat, bound - expected, left)
        steps[np.argmax(np.where(is_open, expected, -np.inf))] = left.max()
        self._waves += 1
        return self._wave_up_to(length - left + steps * is_open)

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Take the answer to the last wave."""
        self.log_prob[self._nodes] = log_prob
        self.is_known[self._nodes] = True

    def _nats_per_token(self) -> float:
        scored = self.log_prob[self.is_known][self._tree.base + 1 :]
        return max(-float(scored.mean()), 0.0) if len(scored) else TYPICAL_NATS

    def _steps(self, lead: Floats, fall: Floats, left: Nodes) -> Nodes:
        """How many tokens each hypothesis goes in this wave.

        Args:
            lead: (H,) by how much its bound is above the total it has to beat.
            fall: (H,) by how much its bound is expected to fall over all tokens left.
            left: (H,) tokens not scored.
        """
        if self._waves == MOST_WAVES - 1:
            return left
        part = np.divide(lead, fall, out=np.where(lead < 0.0, 0.0, 1.0), where=fall > 0.0)
        steps = np.ceil(np.clip(part, 0.0, 1.0) * left).astype(np.int64)
        return np.maximum(steps, min(self._waves, 1))

    def _wave_up_to(self, goal: Nodes) -> Wave:
        """The nodes with which each path is known up to a length, and all their siblings.

        Siblings cost nothing: what costs is to run the parent.
        """
        parent = self._tree.parent
        is_run = np.zeros(self._tree.num_nodes, np.bool_)
        is_run[parent[self._tree.path_node[self._position < goal[self._hypothesis]]]] = True
        self._nodes = np.flatnonzero(is_run[parent] & ~self.is_known)
        num_known = np.count_nonzero(self.is_known)
        self._number[self._nodes] = num_known + np.arange(len(self._nodes))
        return Wave(self._number[parent[self._nodes]], self._tree.token[self._nodes])


def search(tree: TokenTree, total_of: TotalOf | None) -> Search:
    """How to score a tree: all of it, or what shows the best hypothesis if that is worth it."""
    if total_of is None or tree.num_nodes < FEWEST_NODES or len(tree.leaf) < 2:
        return Search(tree)
    return BestSearch(tree, total_of)
