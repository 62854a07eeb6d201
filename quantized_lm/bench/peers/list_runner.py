"""Scores lists with a runtime that runs graphs, padded or as a tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from . import protocol, shapes

_CHUNKS = (10, 20, 50, 100)


class ListRunner:
    """N-best lists in the form of one variant.

    Args:
        run: the arguments of a graph to (C,) float32 log-probabilities.
        lists: those of the task.
        variant: "tree", or "padded" in chunks of the size that the first list is fastest with.
    """

    def __init__(
        self,
        run: Callable[[shapes.Graph], NDArray[np.float32]],
        lists: Sequence[Sequence[Sequence[int]]],
        variant: str,
    ) -> None:
        self._run = run
        self._lists = lists
        self._is_tree = variant == "tree"
        self._chunk = 0
        if not self._is_tree:
            self._chunk = protocol.fastest(_CHUNKS, lambda size: self._padded(lists[0], size))

    @property
    def setting(self) -> str:
        """What is run at a time."""
        return "prefixes shared" if self._is_tree else f"{self._chunk} hypotheses at a time"

    def score(self, index: int) -> list[float]:
        """Pad or merge one list, run, sum: nats of each hypothesis."""
        if not self._is_tree:
            return self._padded(self._lists[index], self._chunk)
        tree = shapes.tree(self._lists[index])
        return tree.scores(self._run(tree.graph))

    def _padded(self, hypotheses: Sequence[Sequence[int]], size: int) -> list[float]:
        scores = np.zeros(len(hypotheses))
        for chosen in shapes.chunks(hypotheses, size):
            graph, owner = shapes.padded_graph([hypotheses[place] for place in chosen])
            np.add.at(scores, chosen[owner], self._run(graph))
        return scores.tolist()
