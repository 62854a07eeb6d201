"""An n-best list as arrays: padded to a rectangle, or as a tree with every context once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .protocol import BOUNDARY_ID

ARGUMENTS = ("tokens", "positions", "mask", "rows", "targets")
HIDDEN = np.float32(-1e9)  # added to the attention scores of what a token must not see


@dataclass(frozen=True)
class Graph:
    """ARGUMENTS of the GPT-2 graph: what to run and which log-probabilities to return.

    Attributes:
        tokens: (B, T) int64. positions: (T,) int64.
        mask: (T, T) float32, 0 where a row may see a column, else HIDDEN.
        rows: (C,) int64, each a place in tokens.reshape(-1). targets: (C,) int64 token ids.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    mask: NDArray[np.float32]
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """A list as a graph, and the way back.

    Attributes:
        parent: (C,) which earlier entry of `targets` each one follows, -1 at the root.
        leaf: (H,) the entry at which each hypothesis ends.
    """

    graph: Graph
    parent: list[int]
    leaf: list[int]

    def scores(self, log_prob: NDArray[np.float32]) -> list[float]:
        """Sums along the paths: (C,) to one number per hypothesis."""
        total = [0.0] * (len(self.parent) + 1)  # the last one is the root's
        for entry, (above, value) in enumerate(zip(self.parent, log_prob.tolist(), strict=True)):
            total[entry] = total[above] + value
        return [total[entry] for entry in self.leaf]


def pad(hypotheses: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets, (H, T) int64 each, padded at the right; a padded target is -1."""
    longest = max(map(len, hypotheses)) + 1
    inputs = np.full((len(hypotheses), longest), BOUNDARY_ID, dtype=np.int64)
    targets = np.full_like(inputs, -1)
    for row, tokens in enumerate(hypotheses):
        inputs[row, 1 : len(tokens) + 1] = tokens
        targets[row, : len(tokens)] = tokens
        targets[row, len(tokens)] = BOUNDARY_ID
    return inputs, targets


def chunks(hypotheses: Sequence[Sequence[int]], size: int) -> Iterator[NDArray[np.int64]]:
    """Positions of `size` hypotheses at a time, of like length."""
    order = np.argsort([len(tokens) for tokens in hypotheses], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def padded_graph(hypotheses: Sequence[Sequence[int]]) -> tuple[Graph, NDArray[np.int64]]:
    """A rectangle as a graph, and the hypothesis, (C,), each answer belongs to."""
    inputs, targets = pad(hypotheses)
    length = inputs.shape[1]
    mask = np.triu(np.full((length, length), HIDDEN), 1)
    owner, place = np.nonzero(targets >= 0)
    return (
        Graph(inputs, np.arange(length), mask, owner * length + place, targets[owner, place]),
        owner,
    )


def tree(hypotheses: Sequence[Sequence[int]]) -> Tree:
    """A list with shared prefixes merged."""
    run = [(BOUNDARY_ID, -1, 0)]  # of each context: its token, the context before it, its position
    context: dict[int, int] = {-1: 0}  # of each entry that has children: which context it is
    entries: dict[tuple[int, int], int] = {}
    rows: list[int] = []
    parent: list[int] = []
    leaf = []
    for tokens in hypotheses:
        entry, symbol = -1, BOUNDARY_ID
        for after in (*tokens, BOUNDARY_ID):
            if entry not in context:
                context[entry] = len(run)
                before = rows[entry]
                run.append((symbol, before, run[before][2] + 1))
            found = entries.setdefault((entry, after), len(entries))
            if found == len(rows):
                rows.append(context[entry])
                parent.append(entry)
            entry, symbol = found, after
        leaf.append(entry)
    targets = np.array([symbol for _, symbol in entries], dtype=np.int64)
    mask = np.full((len(run), len(run)), HIDDEN)
    for node, (_, before, _) in enumerate(run):
        if before >= 0:
            mask[node] = mask[before]
        mask[node, node] = 0.0
    graph = Graph(
        np.array([[symbol for symbol, _, _ in run]], dtype=np.int64),
        np.array([position for _, _, position in run], dtype=np.int64),
        mask,
        np.array(rows, dtype=np.int64),
        targets,
    )
    return Tree(graph, parent, leaf)
