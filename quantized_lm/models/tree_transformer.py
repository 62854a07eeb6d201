"""What Transformers share: a tree of tokens whose nodes attend to their ancestors and themselves.

Training sees packed windows, serving trees. An architecture says what happens to a node between
embedding and output layer; it must not know who its neighbors are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.transformer_config import TreeTransformerConfig
from quantized_lm.models.tree_state import TreeState, keep

GATHERED_KEYS = 2048  # gathered at a time by path attention: a few MB, which stay in cache
# (layer, q, k, v), each (..., heads, head_dim), to what the heads gathered, of the same shape.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


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


class TreeTransformer(FloatModel):
    """The LM: windows and trees differ only in who attends to whom."""

    config: TreeTransformerConfig

    @abstractmethod
    def _run(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Everything but the output layer: (...) int64 -> (..., dim).

        Args:
            positions: depths, broadcast against `tokens`; 0 is the boundary at the root.
            attend: decides who sees whom; called once per layer, in order.
        """

    def forward(self, tokens: Tensor, document: Tensor) -> Tensor:
        """Hidden states of packed windows (see `FloatModel.forward`)."""
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        visible = causal & (document[:, :, None] == document[:, None, :])

        def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            dtype, device = v.dtype, v.device.type
            # On a CPU this takes torch three quarters of the time in float32 as in bfloat16.
            inside = torch.float32 if device == "cpu" else dtype
            with torch.autocast(device, enabled=False):
                q, k, v = (part.transpose(1, 2).to(inside) for part in (q, k, v))
                mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
            return mixed.transpose(1, 2).to(dtype)

        return self._run(tokens, self._window_positions(visible), attend)

    def _window_positions(self, visible: Tensor) -> Tensor:
        """Positions from who sees whom, (B, T, T) bool: each document starts at 0, as a tree."""
        return visible.sum(-1) - 1

    def _run_inner_nodes(self, states: Sequence[TreeState], fresh: Sequence[Sequence[int]]) -> None:
        """Run the nodes that have children now; keys and values of every layer are kept."""
        tokens = [s.token[n] for s, nodes in zip(states, fresh, strict=True) for n in nodes]
        if not tokens:
            return
        depths = [s.depth[n] for s, nodes in zip(states, fresh, strict=True) for n in nodes]
        groups = _path_groups(_key_rows(states, fresh))
        left_behind: list[Tensor] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            left_behind.extend((k, v))
            keys = torch.cat([s.kept[2 * layer] for s in states if s.kept] + [k])
            values = torch.cat([s.kept[2 * layer + 1] for s in states if s.kept] + [v])
            return _path_attention(q, keys, values, groups)

        hidden = self._run(torch.tensor(tokens), torch.tensor(depths), attend)
        keep(states, fresh, [*left_behind, hidden])


def _key_rows(states: Sequence[TreeState], fresh: Sequence[Sequence[int]]) -> list[list[int]]:
    """Where each fresh node finds the keys of its path, root first, itself last.

    Keys are laid out as every state's stored rows, then all fresh rows.
    """
    old_offset, new_offset = 0, sum(state.num_run for state in states)
    paths: list[list[int]] = []
    for state, nodes in zip(states, fresh, strict=True):
        path_of: dict[int, list[int]] = {-1: []}
        for node in nodes:
            path = path_of.get(state.parent[node])
            if path is None:
                path = _stored_path(state, state.parent[node], old_offset)
                path_of[state.parent[node]] = path
            path_of[node] = [*path, new_offset + state.slot[node] - state.num_run]
            paths.append(path_of[node])
        old_offset += state.num_run
        new_offset += len(nodes)
    return paths


def _stored_path(state: TreeState, node: int, offset: int) -> list[int]:
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
