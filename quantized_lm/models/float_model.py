"""What every architecture is as a torch module: trained on windows, packed to serve trees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantized_lm.models.config import ModelConfig, Weights
from quantized_lm.models.layers import TiedEmbedding, packed_weights
from quantized_lm.models.plan import ModelPlan
from quantized_lm.models.tree_state import (
    TreeState,
    append_nodes,
    fork_tree,
    score_nodes,
    take_slots,
    tree_of,
)


class FloatModel(nn.Module, ABC):
    """A LM. `forward` trains on windows; `new_state` and `extend` serve trees.

    Every large matrix is an `nn.Linear` or the tied embedding: those are what is packed.

    Args:
        config: its sizes.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_tokens = config.max_tokens
        self.embedding = TiedEmbedding(config.vocab_size, config.model_dim)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def set_dropout(self, rate: float) -> None:
        """Drop this share of every hidden vector's elements in training mode; 0 at the start."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate

    def runner(self, *, compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """What a loss calls for `forward`, itself compiled or not."""
        del compiled
        return self

    @abstractmethod
    def initialize(self, seed: int) -> None:
        """Draw the weights."""

    def plan(self) -> ModelPlan:
        """What the model computes, as data. It must have been packed."""
        packed = packed_weights(self)
        plain = {
            name: parameter.detach().numpy()
            for name, parameter in self.named_parameters()
            if name not in packed
        }
        return self.config.plan(Weights(packed, plain))

    @abstractmethod
    def forward(self, tokens: Tensor, document: Tensor) -> Tensor:
        """Hidden states of packed windows; with dropout in training mode.

        Args:
            tokens: (B, T) int64. document: (B, T), a position sees those before it of its number.

        Returns:
            (B, T, dim), ready for the output layer.
        """

    def new_state(self, context: Sequence[int] = ()) -> TreeState:
        """A tree that holds the root and the context path. Runs nothing."""
        return tree_of(context)

    def fork(self, state: TreeState, nodes: NDArray[np.int32]) -> TreeState:
        """A new tree of some nodes of another (see `LanguageModel.fork`)."""
        return fork_tree(state, nodes.tolist())

    def state_bytes(self, state: TreeState) -> int:
        """Memory of what is kept."""
        return sum(part.numel() * part.element_size() for part in state.kept)

    @torch.inference_mode()
    def extend(
        self,
        states: Sequence[TreeState],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Append nodes to several trees in one forward pass (see `LanguageModel.extend`)."""
        append_nodes(states, parents, tokens, max_tokens=self.max_tokens)
        self._run_inner_nodes(states, take_slots(states, parents))
        return score_nodes(self.embedding, states, parents, tokens)

    @abstractmethod
    def _run_inner_nodes(self, states: Sequence[TreeState], fresh: Sequence[Sequence[int]]) -> None:
        """Run the nodes that have children now and `keep` what they leave behind.

        Args:
            fresh: what `take_slots` returned: per tree, parents first; all may be empty.
        """
