"""What Transformers share: a tree of tokens whose nodes attend to their ancestors and themselves.

Training sees packed windows, serving trees. An architecture says what happens to a node between
embedding and output layer; it must not know who its neighbors are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from quantized_lm.errors import ShapeError
from quantized_lm.models.layers import TiedEmbedding
from quantized_lm.models.plan import TransformerPlan
from quantized_lm.tokenizer import BOUNDARY_ID

GATHERED_KEYS = 2048  # gathered at a time by path attention: a few MB, which stay in cache
# (layer, q, k, v), each (..., heads, head_dim), to what the heads gathered, of the same shape.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TreeTransformerConfig:
    """Sizes of a Transformer LM."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    ffn_dim: int
    max_tokens: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.model_dim // self.num_heads


@dataclass
class TransformerState:
    """One growing tree with what its run nodes left behind.

    Attributes:
        token, parent, depth, slot: per node; slot is the row in the stores below, -1 if not run.
        keys, values: per layer (run, heads, head_dim). hidden: (run, dim), ready for the output.
    """

    token: list[int]
    parent: list[int]
    depth: list[int]
    slot: list[int]
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    hidden: Tensor | None = None

    def append(self, parent: int, token: int) -> None:
        """Add one node below an existing one."""
        self.parent.append(parent)
        self.token.append(token)
        self.depth.append(self.depth[parent] + 1)
        self.slot.append(-1)


@dataclass(frozen=True)
class PathGroup:
    """Nodes whose path attention is computed together.

    Attributes:
        nodes: (m,) int64, positions among the nodes being run.
        rows: (m, D) int64, the keys of each node's path, padded with 0.
        is_padding: (m, D) bool.
    """

    nodes: Tensor
    rows: Tensor
    is_padding: Tensor


class TreeTransformer(nn.Module, ABC):
    """The LM. `forward` trains on windows; `new_state` and `extend` serve trees."""

    def __init__(self, config: TreeTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TiedEmbedding(config.vocab_size, config.model_dim)

    @abstractmethod
    def initialize(self, seed: int) -> None:
        """Draw the weights."""

    @abstractmethod
    def plan(self) -> TransformerPlan:
        """What the model computes, as data. It must have been packed."""

    @abstractmethod
    def _run(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Everything but the output layer: (...) int64 -> (..., dim).

        Args:
            positions: depths, broadcast against `tokens`; 0 is the boundary at the root.
            attend: decides who sees whom; called once per layer, in order.
        """

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.config.vocab_size

    @property
    def max_tokens(self) -> int:
        """Longest path from the root, root excluded."""
        return self.config.max_tokens

    def forward(self, tokens: Tensor, document: Tensor) -> Tensor:
        """Hidden states of packed windows.

        Args:
            tokens: (B, T) int64. document: (B, T), positions attend within one number only.

        Returns:
            (B, T, dim), ready for the output layer.
        """
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        visible = causal & (document[:, :, None] == document[:, None, :])

        def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
            return mixed.transpose(1, 2)

        return self._run(tokens, self._window_positions(visible), attend)

    def new_state(self, context: Sequence[int] = ()) -> TransformerState:
        """A tree that holds the root and the context path. Runs nothing."""
        state = TransformerState([BOUNDARY_ID], [-1], [0], [-1])
        for token in context:
            state.append(len(state.token) - 1, token)
        return state

    @torch.inference_mode()
    def extend(
        self,
        states: Sequence[TransformerState],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Append nodes to several trees in one forward pass (see `LanguageModel.extend`)."""
        for state, parent, token in zip(states, parents, tokens, strict=True):
            if parent.shape != token.shape:
                raise ShapeError(
                    f"parents are {parent.shape}, tokens {token.shape}; need one shape"
                )
            for above, new in zip(parent.tolist(), token.tolist(), strict=True):
                state.append(above, new)
            if max(state.depth) > self.max_tokens:
                raise ShapeError(
                    f"a path has {max(state.depth)} tokens; need at most {self.max_tokens}"
                )
        self._run_inner_nodes(states, parents)
        return self._score(states, parents, tokens)

    def _window_positions(self, visible: Tensor) -> Tensor:
        """Positions from who sees whom, (B, T, T) bool: each document starts at 0, as a tree."""
        return visible.sum(-1) - 1

    def _run_inner_nodes(
        self, states: Sequence[TransformerState], parents: Sequence[NDArray[np.int32]]
    ) -> None:
        """Run every node that has children now and was not run before, parents first."""
        fresh = [_unrun_ancestors(s, p) for s, p in zip(states, parents, strict=True)]
        tokens = [s.token[n] for s, nodes in zip(states, fresh, strict=True) for n in nodes]
        if not tokens:
            return
        depths = [s.depth[n] for s, nodes in zip(states, fresh, strict=True) for n in nodes]
        stored = [0 if s.hidden is None else len(s.hidden) for s in states]
        for state, nodes, count in zip(states, fresh, stored, strict=True):
            for offset, node in enumerate(nodes):
                state.slot[node] = count + offset
        groups = _path_groups(_key_rows(states, fresh, stored))
        kept: list[tuple[Tensor, Tensor]] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.append((k, v))
            keys = torch.cat([s.keys[layer] for s in states if s.keys] + [k])
            values = torch.cat([s.values[layer] for s in states if s.keys] + [v])
            return _path_attention(q, keys, values, groups)

        hidden = self._run(torch.tensor(tokens), torch.tensor(depths), attend)
        _store(states, [len(nodes) for nodes in fresh], kept, hidden)

    def _score(
        self,
        states: Sequence[TransformerState],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Output layer over all trees' run nodes, gathered at the new nodes."""
        hidden = [s.hidden for s in states if s.hidden is not None]
        if not hidden:
            return [np.zeros(0, np.float32) for _ in states]
        counts = [0 if s.hidden is None else len(s.hidden) for s in states]
        offsets = np.cumsum([0, *counts[:-1]])
        rows = [
            np.asarray(s.slot, dtype=np.int64)[p] + offset
            for s, p, offset in zip(states, parents, offsets, strict=True)
        ]
        log_prob = self.embedding.log_prob(
            torch.cat(hidden),
            torch.from_numpy(np.concatenate(rows)),
            torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        )
        ends = np.cumsum([len(part) for part in tokens])
        return np.split(log_prob.numpy(), ends[:-1])


def _unrun_ancestors(state: TransformerState, parents: NDArray[np.int32]) -> list[int]:
    """Nodes on the way to the new nodes that were never run, in increasing id: parents first."""
    needed: set[int] = set()
    for node in set(parents.tolist()):
        above = node
        while above >= 0 and state.slot[above] < 0 and above not in needed:
            needed.add(above)
            above = state.parent[above]
    return sorted(needed)


def _key_rows(
    states: Sequence[TransformerState], fresh: Sequence[list[int]], stored: Sequence[int]
) -> list[list[int]]:
    """Where each fresh node finds the keys of its path, root first, itself last.

    Keys are laid out as every state's stored rows, then all fresh rows.
    """
    old_offset, new_offset = 0, sum(stored)
    paths: list[list[int]] = []
    for state, nodes, count in zip(states, fresh, stored, strict=True):
        path_of: dict[int, list[int]] = {-1: []}
        for node in nodes:
            path = path_of.get(state.parent[node])
            if path is None:
                path = _stored_path(state, state.parent[node], old_offset)
                path_of[state.parent[node]] = path
            path_of[node] = [*path, new_offset + state.slot[node] - count]
            paths.append(path_of[node])
        old_offset += count
        new_offset += len(nodes)
    return paths


def _stored_path(state: TransformerState, node: int, offset: int) -> list[int]:
    """Key rows of a path whose nodes were all run in earlier calls, root first."""
    path: list[int] = []
    while node >= 0:
        path.append(offset + state.slot[node])
        node = state.parent[node]
    return path[::-1]


def _path_groups(paths: Sequence[list[int]]) -> list[PathGroup]:
    """Group paths of like length, so that little is padded and little is gathered at a time."""
    lengths = np.asarray([len(path) for path in paths])
    order = np.argsort(lengths, kind="stable")
    groups: list[PathGroup] = []
    start = 0
    for end in range(1, len(order) + 1):
        is_full = end == len(order) or (end + 1 - start) * lengths[order[end]] > GATHERED_KEYS
        if is_full:
            groups.append(_path_group([paths[node] for node in order[start:end]], order[start:end]))
            start = end
    return groups


def _path_group(paths: Sequence[list[int]], nodes: NDArray[np.int64]) -> PathGroup:
    rows = np.zeros((len(paths), max(map(len, paths))), dtype=np.int64)
    is_padding = np.ones(rows.shape, dtype=np.bool_)
    for index, path in enumerate(paths):
        rows[index, : len(path)] = path
        is_padding[index, : len(path)] = False
    return PathGroup(*map(torch.from_numpy, (nodes, rows, is_padding)))


def _path_attention(q: Tensor, keys: Tensor, values: Tensor, groups: Sequence[PathGroup]) -> Tensor:
    """Each node attends to its ancestors and itself: (M, heads, head_dim), never an M by M mask."""
    mixed = torch.empty_like(q)
    queries, keys, values = (part.transpose(0, 1).contiguous() for part in (q, keys, values))
    for group in groups:
        scores = keys[:, group.rows] @ queries[:, group.nodes, :, None]
        scores = scores.squeeze(-1) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(group.is_padding, float("-inf")).softmax(-1)
        of_group = weights[:, :, None] @ values[:, group.rows]
        mixed[group.nodes] = of_group.squeeze(2).transpose(0, 1)
    return mixed


def _store(
    states: Sequence[TransformerState],
    counts: Sequence[int],
    kept: Sequence[tuple[Tensor, Tensor]],
    hidden: Tensor,
) -> None:
    """Hand each tree its rows of the pass that was just made."""
    start = 0
    for state, count in zip(states, counts, strict=True):
        part = slice(start, start + count)
        start += count
        if not count:
            continue
        keys = [k[part] for k, _ in kept]
        values = [v[part] for _, v in kept]
        if state.hidden is None:
            state.keys, state.values, state.hidden = keys, values, hidden[part]
        else:
            state.keys = [torch.cat(pair) for pair in zip(state.keys, keys, strict=True)]
            state.values = [torch.cat(pair) for pair in zip(state.values, values, strict=True)]
            state.hidden = torch.cat((state.hidden, hidden[part]))
