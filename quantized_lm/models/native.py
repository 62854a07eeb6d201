"""A packed model run by a native engine: its plan is handed over once, then its trees."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import BackendError, ShapeError
from quantized_lm.models.plan import (
    BlockPlan,
    Floats,
    LstmLayerPlan,
    LstmPlan,
    ModelPlan,
    NormPlan,
    ProjectionPlan,
    TransformerPlan,
)
from quantized_lm.ops import PackedWeight
from quantized_lm.ops.cpu import CpuBackend
from quantized_lm.tokenizer import BOUNDARY_ID

with contextlib.suppress(ImportError):  # then there is no CpuBackend, and nothing here is called
    from quantized_lm.ops import _cpu


class NativeModel:
    """See `LanguageModel`. States are native trees.

    Args:
        plan: a model packed by `backend`.
        backend: whose threads and instruction set are used.

    Raises:
        BackendError: no engine runs such a plan.
    """

    def __init__(self, plan: ModelPlan, backend: CpuBackend) -> None:
        self._vocab_size = plan.embedding.shape[0]
        self._max_tokens = plan.max_tokens
        # A LSTM multiplies one level of all trees at a time: the more trees, the better.
        runs_in_blocks = isinstance(plan, TransformerPlan)
        self._ample_nodes = _cpu.ROW_BLOCK * backend.threads if runs_in_blocks else None
        try:
            self._engine = _ENGINES[type(plan)](plan, backend)
        except ValueError as error:
            raise BackendError(f"the native engine takes no such model: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._vocab_size

    @property
    def max_tokens(self) -> int:
        """Longest path from the root, root excluded."""
        return self._max_tokens

    @property
    def ample_nodes(self) -> int | None:
        """See `Satiable`: a block of rows for each thread."""
        return self._ample_nodes

    def new_state(self, context: Sequence[int] = ()) -> _cpu.Tree:
        """A tree that holds the root and the context path. Runs nothing.

        Raises:
            ShapeError: a token is out of range, or there are too many.
        """
        try:
            return self._engine.new_tree([BOUNDARY_ID, *context])
        except ValueError as error:
            raise ShapeError(str(error)) from None

    def fork(self, state: _cpu.Tree, nodes: NDArray[np.int32]) -> _cpu.Tree:
        """A new tree of some nodes of another (see `LanguageModel.fork`).

        Raises:
            ShapeError: the nodes do not make a tree, or it is another model's.
        """
        try:
            return self._engine.fork(state, np.ascontiguousarray(nodes, np.int32))
        except ValueError as error:
            raise ShapeError(str(error)) from None

    def state_bytes(self, state: _cpu.Tree) -> int:
        """Memory that a tree holds."""
        return state.num_bytes

    def extend(
        self,
        states: Sequence[_cpu.Tree],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Append nodes to several trees in one forward pass (see `LanguageModel.extend`).

        Raises:
            ShapeError: the arrays do not fit together, a parent does not exist, a token is out of
                range or a path too long, or a tree is given twice; the trees are as before.
            BackendError: the model computes something that is no number, or its threads are those
                of the process that this one was forked from.
        """
        for array in (*parents, *tokens):
            if array.dtype != np.int32 or array.ndim != 1:
                raise ShapeError(f"nodes are {array.dtype} {array.shape}; need int32 vectors")
        sizes = [len(part) for part in tokens]
        log_prob = np.empty(sum(sizes), np.float32)
        try:
            self._engine.extend(
                states,
                [np.ascontiguousarray(part) for part in parents],
                [np.ascontiguousarray(part) for part in tokens],
                log_prob,
            )
        except ValueError as error:
            raise ShapeError(str(error)) from None
        except RuntimeError as error:
            raise BackendError(str(error)) from None
        if not np.isfinite(log_prob).all():
            raise BackendError("log-probabilities hold NaN or infinity; need finite weights")
        ends = itertools.accumulate(sizes)
        return [log_prob[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _transformer(plan: TransformerPlan, backend: CpuBackend) -> _cpu.Engine:
    native = _cpu.TransformerPlan()
    native.model_dim = plan.model_dim
    native.num_heads = plan.num_heads
    native.ffn_dim = plan.ffn_dim
    native.max_tokens = plan.max_tokens
    native.embedding = _weight(plan.embedding)
    native.positions = _floats(plan.positions)
    native.cos, native.sin = map(_floats, plan.rotations())
    native.normalizes_embedding = plan.normalizes_embedding
    native.normalizes_qk = plan.normalizes_qk
    native.norm_epsilon = plan.norm_epsilon
    native.activation = getattr(_cpu.Activation, plan.activation)
    native.blocks = [_block(block) for block in plan.blocks]
    native.final_norm = _norm(plan.final_norm)
    return _cpu.Transformer(backend.variant, backend.pool, native)


def _lstm(plan: LstmPlan, backend: CpuBackend) -> _cpu.Engine:
    native = _cpu.LstmPlan()
    native.model_dim = plan.model_dim
    native.max_tokens = plan.max_tokens
    native.embedding = _weight(plan.embedding)
    native.layers = [_lstm_layer(layer) for layer in plan.layers]
    return _cpu.Lstm(backend.variant, backend.pool, native)


# What runs a plan, by its type.
_ENGINES: Mapping[type[ModelPlan], Callable[[Any, CpuBackend], _cpu.Engine]] = MappingProxyType(
    {TransformerPlan: _transformer, LstmPlan: _lstm}
)


def _block(plan: BlockPlan) -> _cpu.BlockPlan:
    native = _cpu.BlockPlan()
    native.attention_norm = _norm(plan.attention_norm)
    native.ffn_norm = _norm(plan.ffn_norm)
    native.qkv = _projection(plan.qkv)
    native.out = _projection(plan.out)
    native.up = _projection(plan.up)
    native.down = _projection(plan.down)
    native.mix_stream, native.mix_embedding = plan.mix
    return native


def _lstm_layer(plan: LstmLayerPlan) -> _cpu.LstmLayerPlan:
    native = _cpu.LstmLayerPlan()
    native.input = [_projection(gate) for gate in plan.input]
    native.recurrent = [_projection(gate) for gate in plan.recurrent]
    return native


def _norm(plan: NormPlan) -> _cpu.NormPlan:
    native = _cpu.NormPlan()
    native.gain, native.bias = _floats(plan.gain), _floats(plan.bias)
    native.epsilon = plan.epsilon
    native.subtracts_mean = plan.subtracts_mean
    return native


def _projection(plan: ProjectionPlan) -> _cpu.ProjectionPlan:
    native = _cpu.ProjectionPlan()
    native.weight, native.bias = _weight(plan.weight), _floats(plan.bias)
    return native


def _floats(numbers: Floats | None) -> _cpu.Floats:
    return _cpu.Floats(numbers)


def _weight(weight: PackedWeight) -> _cpu.Weight:
    words, scale, levels = weight.parts
    return _cpu.Weight(words, scale, levels, list(weight.layout))
