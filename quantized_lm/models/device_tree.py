"""A growing tree of tokens whose run nodes are kept on a device: which nodes there are, and where.

Everything is done with whole arrays: a batch has thousands of nodes, and Python is slower than the
device.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import ShapeError
from quantized_lm.models.device_slots import ABOVE_ROOTS, Slots
from quantized_lm.tokenizer import BOUNDARY_ID

NOT_RUN = -1
Ints = NDArray[np.int32]


class DeviceTree:
    """One tree.

    Args:
        slots: of the model, told when the tree is dropped.

    Attributes:
        token, parent, depth, slot: (n,) int32 per node; the root's parent is -1, slot is NOT_RUN
            until the node was run.
    """

    def __init__(self, slots: Slots, token: Ints, parent: Ints, depth: Ints) -> None:
        self.slots = slots
        self.token, self.parent, self.depth = token, parent, depth
        self.slot = np.full(len(token), NOT_RUN, np.int32)
        self._taken: list[Ints] = []
        weakref.finalize(self, slots.drop, self._taken).atexit = False

    @classmethod
    def path(cls, slots: Slots, context: Sequence[int]) -> DeviceTree:
        """The root and the context below it."""
        token = np.array([BOUNDARY_ID, *context], np.int32)
        depth = np.arange(len(token), dtype=np.int32)
        return cls(slots, token, depth - 1, depth)

    @property
    def num_nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.token)

    @property
    def num_run(self) -> int:
        """Nodes of which something is kept."""
        return sum(map(len, self._taken))

    def own(self, nodes: NDArray[np.int64], slots: Ints) -> None:
        """Nodes were run, and what they left is in these slots, which the tree has one use of."""
        self.slot[nodes] = slots
        self._taken.append(slots)

    def fork(self, nodes: Ints) -> DeviceTree:
        """A tree of some of the nodes that names the same slots.

        Raises:
            ShapeError: the nodes do not make a tree: the root first, each once and after its
                parent.
        """
        place = np.full(self.num_nodes + 1, -1, np.int32)  # the last is that of no node
        exists = (nodes >= 0) & (nodes < self.num_nodes)
        inside = np.where(exists, nodes, 0)
        place[inside[::-1]] = np.arange(len(nodes), dtype=np.int32)[::-1]
        above = place[self.parent[inside]]
        order = np.arange(len(nodes), dtype=np.int32)
        is_root = inside == 0
        fits = exists & (place[inside] == order) & (is_root == (order == 0))
        fits &= is_root | ((above >= 0) & (above < order))
        if not len(nodes) or not fits.all():
            position = int(np.argmin(fits)) if len(nodes) else 0
            node = int(nodes[position]) if len(nodes) else -1
            raise ShapeError(
                f"node {node} stands at {position}; need the root first, and each once and after "
                "its parent"
            )
        above[0] = -1
        part = DeviceTree(self.slots, self.token[nodes], above, self.depth[nodes])
        slots = self.slot[nodes]
        run = np.flatnonzero(slots >= 0)
        self.slots.share(slots[run])
        part.own(run, slots[run])
        return part


@dataclass(frozen=True, eq=False)
class Growth:
    """Nodes that are about to be added to a tree, and what has to be run for them.

    Attributes:
        token, parent, depth: of all nodes of the grown tree.
        fresh: (m,) nodes to be run, parents first.
        asked: (n,) the node above each new one. tokens: (n,) of the new ones.
    """

    tree: DeviceTree
    token: Ints
    parent: Ints
    depth: Ints
    fresh: NDArray[np.int64]
    asked: Ints
    tokens: Ints

    def slots_with(self, taken: Ints) -> Ints:
        """Slots of the grown tree's nodes once the fresh ones are in `taken`."""
        slots = np.full(len(self.token), NOT_RUN, np.int32)
        slots[: self.tree.num_nodes] = self.tree.slot
        slots[self.fresh] = taken
        return slots

    def parent_slots(self, slots: Ints) -> Ints:
        """Slots above the fresh nodes: ABOVE_ROOTS where there is no node."""
        above = self.parent[self.fresh]
        return np.where(above >= 0, slots[above], ABOVE_ROOTS).astype(np.int32)

    def commit(self, taken: Ints) -> None:
        """The fresh nodes were run: the tree has the new nodes from now on."""
        tree = self.tree
        grown = np.full(len(self.token), NOT_RUN, np.int32)
        grown[: tree.num_nodes] = tree.slot
        tree.token, tree.parent, tree.depth, tree.slot = self.token, self.parent, self.depth, grown
        tree.own(self.fresh, taken)


def plan_growth(tree: DeviceTree, parents: Ints, tokens: Ints, limits: tuple[int, int]) -> Growth:
    """See what adding nodes takes; changes nothing.

    Args:
        limits: number of token ids, longest path.

    Raises:
        ShapeError: the nodes cannot be added.
    """
    vocab_size, max_tokens = limits
    for array in (parents, tokens):
        if array.dtype != np.int32 or array.ndim != 1:
            raise ShapeError(f"nodes are {array.dtype} {array.shape}; need int32 vectors")
    if parents.shape != tokens.shape:
        raise ShapeError(f"parents are {parents.shape}, tokens {tokens.shape}; need one shape")
    number = np.arange(tree.num_nodes, tree.num_nodes + len(parents))
    require_inside(parents, number, "the parent of node {node} is {value}; need 0 to {last}")
    require_inside(tokens, np.full(len(tokens), vocab_size), "a token is {value}; need 0 to {last}")
    parent = np.concatenate([tree.parent, parents])
    depth = _depths(tree, parents)
    if len(depth) and depth.max() > max_tokens:
        raise ShapeError(f"a path has {depth.max()} tokens; need at most {max_tokens}")
    return Growth(
        tree=tree,
        token=np.concatenate([tree.token, tokens]),
        parent=parent,
        depth=np.concatenate([tree.depth, depth]),
        fresh=_unrun_ancestors(tree, parent, parents),
        asked=parents,
        tokens=tokens,
    )


def require_inside(values: Ints, limits: NDArray[np.int64], message: str) -> None:
    """Require 0 <= value < limit of each.

    Raises:
        ShapeError: one is not.
    """
    is_outside = (values < 0) | (values >= limits)
    if is_outside.any():
        first = int(np.argmax(is_outside))
        limit, value = int(limits[first]), int(values[first])
        raise ShapeError(message.format(node=limit, value=value, last=limit - 1))


def _depths(tree: DeviceTree, parents: Ints) -> Ints:
    """Depths of new nodes: steps to the tree, doubled until all are there."""
    size = tree.num_nodes
    above, steps = parents.copy(), np.ones(len(parents), np.int32)
    while True:
        new = np.flatnonzero(above >= size)
        if not len(new):
            return (steps + tree.depth[above]).astype(np.int32)
        via = above[new] - size
        steps[new] += steps[via]
        above[new] = above[via]


def _unrun_ancestors(tree: DeviceTree, parent: Ints, parents: Ints) -> NDArray[np.int64]:
    """Nodes on the way to the new nodes that were never run, in increasing id: parents first."""
    is_needed = np.zeros(len(parent), np.bool_)
    is_run = np.zeros(len(parent), np.bool_)
    is_run[: tree.num_nodes] = tree.slot >= 0
    node = parents
    while len(node):
        node = node[(node >= 0) & ~is_run[node] & ~is_needed[node]]
        is_needed[node] = True
        node = parent[np.unique(node)]
    return np.flatnonzero(is_needed)
