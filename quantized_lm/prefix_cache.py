"""Trees kept after they were scored, so that work which begins alike need not start from the root.

What comes again is a context (earlier utterances of a speaker) and a streaming decoder's partial
lists, each of which shares most of its paths with the one before. A kept tree is found by the
tokens of its paths and by nothing else, so losing one costs time and never another answer: the
engines give a node the same numbers whatever else is in the tree.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantized_lm.models.base import LanguageModel, TreeState
from quantized_lm.pruning import Wave
from quantized_lm.tokenizer import BOUNDARY_ID

Event = Literal["hit", "miss", "eviction"]
NODE_BYTES = 512  # what Python keeps of one node, about
LARGEST_SHARE = 4  # a tree larger than this part of the cache is kept without its hypotheses
UNKNOWN = math.nan


@dataclass(frozen=True)
class Reused:
    """What of a piece of work was known from earlier work.

    Attributes:
        nodes: of its context and its hypotheses.
        log_probs: of its hypotheses.
        run_nodes: nodes that it did not have to run through the network.
    """

    nodes: int = 0
    log_probs: int = 0
    run_nodes: int = 0


class KnownTree:
    """A model's tree, with the log-probabilities that are known of it.

    Attributes:
        state: the model's. parent, token: per node; the root's parent is -1.
        log_prob: per node, nats; NaN where it is not known.
        child: (node, token) -> node.
    """

    def __init__(self, state: TreeState) -> None:
        self.state = state
        self.parent = [-1]
        self.token = [BOUNDARY_ID]
        self.log_prob = [UNKNOWN]
        self.child: dict[tuple[int, int], int] = {}

    @classmethod
    def fresh(cls, model: LanguageModel, context: Sequence[int]) -> KnownTree:
        """The root and a context of which nothing is known."""
        nodes = np.arange(len(context) + 1, dtype=np.int32)
        tree = cls(model.fork(model.new_state(context), nodes))  # as only a fork is to be kept
        for parent, token in enumerate(context):
            tree.append(parent, token)
        return tree

    def append(self, parent: int, token: int, log_prob: float = UNKNOWN) -> int:
        """Add a node; its number."""
        node = len(self.token)
        self.parent.append(parent)
        self.token.append(token)
        self.log_prob.append(log_prob)
        self.child[parent, token] = node
        return node


class Growth:
    """One piece of work on a tree of which some is known.

    The work numbers its nodes as `LanguageModel` does: root, context, then wave after wave. The
    tree may hold them in another order.

    Args:
        tree: what is known; grows as the work goes on.
        context: of the work. num_found: nodes of the tree that were found, the root included.
        was_run: those of them that went through the network.

    Attributes:
        is_settled: whether the model has every node of the tree, and something was scored.
        reused: what was known; of a wave that is not answered nothing.
    """

    def __init__(
        self,
        tree: KnownTree,
        context: Sequence[int],
        num_found: int = 1,
        was_run: Set[int] = frozenset(),
    ) -> None:
        self.tree = tree
        self.is_settled = False
        self.reused = Reused(num_found - 1)
        self._num_context = len(context)
        self._num_found = num_found
        self._was_run = was_run
        self._run_found: set[int] = set()
        self._log_probs_found = 0
        self._number = [0]  # of the work's nodes in the tree
        self._new: list[int] = []  # nodes that the model does not have yet
        self._wanted: list[int] = []
        for token in context:
            self._number.append(self._step(self._number[-1], token))

    def want(self, wave: Wave) -> Wave | None:
        """What of a wave, and of the context, has to be scored; None if all of it is known."""
        self._wanted = []
        self.is_settled = False
        for parent, token in zip(wave.parents.tolist(), wave.tokens.tolist(), strict=True):
            above = self._number[parent]
            node = self._step(above, token)
            if node < self._num_found:
                if math.isnan(self.tree.log_prob[node]):  # it was context, and never scored
                    node = self._append(above, token)
                else:
                    self._log_probs_found += 1
            self._number.append(node)
            self._wanted.append(node)
        if not self._new:
            return None
        parents, tokens = self.tree.parent, self.tree.token
        return Wave(
            np.array([parents[node] for node in self._new], np.int32),
            np.array([tokens[node] for node in self._new], np.int32),
        )

    def learn(self, log_prob: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the answer to what had to be scored; gives that to the wave it was made from."""
        known = self.tree.log_prob
        for node, one in zip(self._new, log_prob.tolist(), strict=True):
            known[node] = one
        self._new = []
        self.is_settled = True
        self.reused = Reused(self._num_found - 1, self._log_probs_found, len(self._run_found))
        return np.array([known[node] for node in self._wanted], np.float32)

    @property
    def context_nodes(self) -> list[int]:
        """Where the tree has the work's root and context."""
        return self._number[: self._num_context + 1]

    def _step(self, above: int, token: int) -> int:
        if above in self._was_run:
            self._run_found.add(above)
        node = self.tree.child.get((above, token))
        return self._append(above, token) if node is None else node

    def _append(self, above: int, token: int) -> int:
        node = self.tree.append(above, token)
        self._new.append(node)
        return node


@dataclass
class _Entry:
    tree: KnownTree
    keys: Sequence[int]  # of its nodes, each once
    num_bytes: int
    num_newest: int  # keys of paths that no newer tree has


class PrefixCache:
    """Trees of one model, those used last, in a bound of memory. For one thread.

    Args:
        model: whose trees they are.
        max_bytes: most that they hold together, about.
        on_event: told of each search, and of each tree forgotten for want of room. It is a hit if
            the whole context was found or, of work without one, half of its first wave.
    """

    def __init__(
        self,
        model: LanguageModel,
        max_bytes: int,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.num_bytes = 0
        self._weak_model = weakref.ref(model)  # a model that nobody serves any more may go
        self._max_bytes = max_bytes
        self._on_event = on_event
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # the one used last at the end
        self._entry_of: dict[int, int] = {}  # key of a path -> the newest tree that has it
        self._next_entry = 0

    def __len__(self) -> int:
        """Number of trees."""
        return len(self._entries)

    @property
    def _model(self) -> LanguageModel:
        model = self._weak_model()
        if model is None:
            raise ReferenceError("the model of these trees is gone; this is a bug")
        return model

    def begin(self, context: Sequence[int], wave: Wave | None) -> Growth:
        """Start a piece of work from the kept tree that has most of its context and first wave."""
        parents, tokens = _nodes_of(context, wave)
        keys = _keys(parents, tokens)
        found = Counter(self._entry_of[key] for key in keys if key in self._entry_of)
        if not found:
            self._on_event("miss")
            return Growth(KnownTree.fresh(self._model, context), context)
        (number, _), *_ = found.most_common(1)
        self._entries.move_to_end(number)
        source = self._entries[number].tree
        nodes = _found_nodes(source, parents, tokens)
        wanted = len(context) or len(keys) / 2  # fewer are a word that many texts begin with
        self._on_event("hit" if len(nodes) - 1 >= wanted else "miss")
        inner = {above for above, _ in source.child}
        was_run = {position for position, node in enumerate(nodes) if node in inner}
        return Growth(self._part(source, nodes), context, len(nodes), was_run)

    def keep(self, growth: Growth) -> None:
        """Keep the tree of a piece of work that is over and does not grow any more.

        Work that was stopped leaves nothing.
        """
        if not growth.is_settled:
            return
        tree = growth.tree
        if self._size(tree) * LARGEST_SHARE > self._max_bytes:
            tree = self._part(tree, growth.context_nodes)
        size = self._size(tree)
        if len(tree.token) == 1 or size > self._max_bytes:
            return
        keys = list(dict.fromkeys(_keys(tree.parent, tree.token)))
        self._supersede(keys)
        self._entries[self._next_entry] = _Entry(tree, keys, size, len(keys))
        self._entry_of.update(dict.fromkeys(keys, self._next_entry))
        self._next_entry += 1
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            self._forget_oldest()

    def _supersede(self, keys: Sequence[int]) -> None:
        """Forget the trees all of whose paths newer ones have: nothing would find them."""
        taken = Counter(self._entry_of[key] for key in keys if key in self._entry_of)
        for number, num_taken in taken.items():
            entry = self._entries[number]
            entry.num_newest -= num_taken
            if not entry.num_newest:
                del self._entries[number]
                self.num_bytes -= entry.num_bytes

    def _forget_oldest(self) -> None:
        number, entry = self._entries.popitem(last=False)
        self.num_bytes -= entry.num_bytes
        for key in entry.keys:
            if self._entry_of.get(key) == number:
                del self._entry_of[key]
        self._on_event("eviction")

    def _part(self, tree: KnownTree, nodes: Sequence[int]) -> KnownTree:
        part = KnownTree(self._model.fork(tree.state, np.array(nodes, np.int32)))
        place = {node: position for position, node in enumerate(nodes)}
        for node in nodes[1:]:
            part.append(place[tree.parent[node]], tree.token[node], tree.log_prob[node])
        return part

    def _size(self, tree: KnownTree) -> int:
        return self._model.state_bytes(tree.state) + NODE_BYTES * len(tree.token)


def _nodes_of(context: Sequence[int], wave: Wave | None) -> tuple[list[int], list[int]]:
    """Parents and tokens of what a piece of work begins with: root, context, first wave."""
    parents = [-1, *range(len(context))]
    tokens = [BOUNDARY_ID, *context]
    if wave is not None:
        parents += wave.parents.tolist()
        tokens += wave.tokens.tolist()
    return parents, tokens


def _found_nodes(tree: KnownTree, parents: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Those of these nodes that a kept tree has, parents first, by their numbers there."""
    number: list[int | None] = [0]
    for parent, token in zip(parents[1:], tokens[1:], strict=True):
        above = number[parent]
        number.append(None if above is None else tree.child.get((above, token)))
    return list(dict.fromkeys(node for node in number if node is not None))


def _keys(parents: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """A number for the path to each node but the root. That two paths have one is harmless."""
    keys = [0]
    for parent, token in zip(parents[1:], tokens[1:], strict=True):
        keys.append(hash((keys[parent], token)))
    return keys[1:]
