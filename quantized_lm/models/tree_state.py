"""A growing tree of tokens as a model's module serves it: which nodes there are, which were run.

It keeps what run nodes left behind, but does not know what an architecture computes for a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.errors import ShapeError
from quantized_lm.models.layers import TiedEmbedding
from quantized_lm.tokenizer import BOUNDARY_ID


@dataclass
class TreeState:
    """One tree, at first its root alone.

    Attributes:
        token, parent, depth, slot: per node; slot is the row in what is kept, -1 if not run.
        kept: what the run nodes left behind, each (run, ...), as the architecture orders it; the
            last is their hidden states (run, dim), ready for the output layer. Empty at first.
    """

    token: list[int] = field(default_factory=lambda: [BOUNDARY_ID])
    parent: list[int] = field(default_factory=lambda: [-1])
    depth: list[int] = field(default_factory=lambda: [0])
    slot: list[int] = field(default_factory=lambda: [-1])
    kept: list[Tensor] = field(default_factory=list)

    @property
    def num_run(self) -> int:
        """Nodes of which something is kept."""
        return len(self.kept[-1]) if self.kept else 0

    def append(self, parent: int, token: int) -> None:
        """Add one node below an existing one."""
        self.parent.append(parent)
        self.token.append(token)
        self.depth.append(self.depth[parent] + 1)
        self.slot.append(-1)


def tree_of(context: Sequence[int]) -> TreeState:
    """The root and the context path."""
    state = TreeState()
    for parent, token in enumerate(context):
        state.append(parent, token)
    return state


def fork_tree(state: TreeState, nodes: Sequence[int]) -> TreeState:
    """A copy of some nodes and of what they left behind; the root first, parents first.

    Raises:
        ShapeError: they are in another order, or do not make a tree.
    """
    if not nodes:
        raise ShapeError("there are no nodes; need the root first")
    fork = TreeState([], [], [], [])
    place: dict[int, int] = {-1: -1}
    kept_slots: list[int] = []
    for position, node in enumerate(nodes):
        exists = 0 <= node < len(state.token) and node not in place
        above = place.get(state.parent[node]) if exists else None
        if above is None or (above < 0) != (position == 0):
            raise ShapeError(
                f"node {node} stands at {position}; need the root first, and each once and after "
                "its parent"
            )
        place[node] = position
        fork.token.append(state.token[node])
        fork.parent.append(above)
        fork.depth.append(state.depth[node])
        is_run = state.slot[node] >= 0
        fork.slot.append(len(kept_slots) if is_run else -1)
        kept_slots += [state.slot[node]] * is_run
    if kept_slots:
        fork.kept = [part[kept_slots] for part in state.kept]
    return fork


def append_nodes(
    states: Sequence[TreeState],
    parents: Sequence[NDArray[np.int32]],
    tokens: Sequence[NDArray[np.int32]],
    *,
    max_tokens: int,
) -> None:
    """Add nodes to several trees, as `LanguageModel.extend` is given them.

    Raises:
        ShapeError: parents and tokens differ in shape, a parent does not exist, or a path gets too
            long.
    """
    for state, parent, token in zip(states, parents, tokens, strict=True):
        if parent.shape != token.shape:
            raise ShapeError(f"parents are {parent.shape}, tokens {token.shape}; need one shape")
        for above, new in zip(parent.tolist(), token.tolist(), strict=True):
            size = len(state.token)
            if not 0 <= above < size:
                raise ShapeError(f"the parent of node {size} is {above}; need 0 to {size - 1}")
            state.append(above, new)
        if max(state.depth) > max_tokens:
            raise ShapeError(f"a path has {max(state.depth)} tokens; need at most {max_tokens}")


def take_slots(
    states: Sequence[TreeState], parents: Sequence[NDArray[np.int32]]
) -> list[list[int]]:
    """Per tree the nodes that have children now and were not run before, in increasing id.

    They get the slots after those in use, in this order: parents first.
    """
    fresh = [_unrun_ancestors(state, part) for state, part in zip(states, parents, strict=True)]
    for state, nodes in zip(states, fresh, strict=True):
        for slot, node in enumerate(nodes, start=state.num_run):
            state.slot[node] = slot
    return fresh


def keep(
    states: Sequence[TreeState], fresh: Sequence[Sequence[int]], left_behind: Sequence[Tensor]
) -> None:
    """Hand each tree its rows of the pass that was just made.

    Args:
        fresh: what `take_slots` returned.
        left_behind: as `TreeState.kept`, each (fresh nodes of all trees, ...), tree after tree.
    """
    start = 0
    for state, nodes in zip(states, fresh, strict=True):
        rows = [part[start : start + len(nodes)] for part in left_behind]
        start += len(nodes)
        if not state.kept:
            state.kept = rows if nodes else []
        elif nodes:
            state.kept = [torch.cat(pair) for pair in zip(state.kept, rows, strict=True)]


def score_nodes(
    embedding: TiedEmbedding,
    states: Sequence[TreeState],
    parents: Sequence[NDArray[np.int32]],
    tokens: Sequence[NDArray[np.int32]],
) -> list[NDArray[np.float32]]:
    """Output layer over all trees' run nodes, gathered at the new nodes; per tree (n,)."""
    hidden = [state.kept[-1] for state in states if state.kept]
    if not hidden:
        return [np.zeros(0, np.float32) for _ in states]
    offsets = np.cumsum([0, *(state.num_run for state in states)])[:-1]
    rows = [
        np.asarray(state.slot, dtype=np.int64)[part] + offset
        for state, part, offset in zip(states, parents, offsets, strict=True)
    ]
    log_prob = embedding.log_prob(
        torch.cat(hidden),
        torch.from_numpy(np.concatenate(rows)),
        torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
    )
    ends = np.cumsum([len(part) for part in tokens])
    return np.split(log_prob.numpy(), ends[:-1])


def _unrun_ancestors(state: TreeState, parents: NDArray[np.int32]) -> list[int]:
    """Nodes on the way to the new nodes that were never run, in increasing id: parents first."""
    needed: set[int] = set()
    for node in set(parents.tolist()):
        above = node
        while above >= 0 and state.slot[above] < 0 and above not in needed:
            needed.add(above)
            above = state.parent[above]
    return sorted(needed)
