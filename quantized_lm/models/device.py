"""A packed model on a GPU: trees on the host, what their nodes leave behind on the device."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantized_lm.errors import BackendError, ShapeError
from quantized_lm.models.device_block import graph_recorder
from quantized_lm.models.device_engine import DeviceEngine, Rows
from quantized_lm.models.device_lstm import DeviceLstm
from quantized_lm.models.device_slots import Slots
from quantized_lm.models.device_transformer import DeviceTransformer
from quantized_lm.models.device_tree import DeviceTree, Growth, plan_growth, require_inside
from quantized_lm.models.plan import LstmPlan, ModelPlan, TransformerPlan
from quantized_lm.ops.backend import Residency
from quantized_lm.ops.gpu import GpuBackend

_NODE_BYTES = 4 * 4  # of the host's arrays
# Slots at first: room for a few passes of the largest size, unless that is this part of the memory.
_PASSES_KEPT = 4
_FIRST_SHARE = 4

_ENGINES: Mapping[type[ModelPlan], type[Any]] = MappingProxyType(
    {TransformerPlan: DeviceTransformer, LstmPlan: DeviceLstm}
)


class DeviceModel:
    """See `LanguageModel`. States are `DeviceTree`s; slots grow in number as they are needed.

    Args:
        plan: a model packed by `backend`.
    """

    def __init__(self, plan: ModelPlan, backend: GpuBackend) -> None:
        self._limits = (plan.embedding.shape[0], plan.max_tokens)
        is_cuda = backend.device.type == "cuda"
        recorder = graph_recorder(backend.device) if is_cuda else None
        with torch.inference_mode():
            engine: DeviceEngine = _ENGINES[type(plan)](plan, backend, recorder)
        self._engine = engine
        self._slots = Slots(self._first_slots(backend.buckets[-1]))
        self._lock = threading.Lock()
        self._resize()

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._limits[0]

    @property
    def max_tokens(self) -> int:
        """Longest path from the root, root excluded."""
        return self._limits[1]

    @property
    def residency(self) -> Residency:
        """How the weights lie in the device's memory: "packed" or "expanded"."""
        return self._engine.residency

    def new_state(self, context: Sequence[int] = ()) -> DeviceTree:
        """A tree that holds the root and the context path. Runs nothing.

        Raises:
            ShapeError: a token is out of range, or there are too many.
        """
        if len(context) > self.max_tokens:
            raise ShapeError(f"a path has {len(context)} tokens; need at most {self.max_tokens}")
        tokens = np.clip(np.asarray(context, np.int64), -1, self.vocab_size).astype(np.int32)
        limits = np.full(len(tokens), self.vocab_size)
        require_inside(tokens, limits, "a token is {value}; need 0 to {last}")
        return DeviceTree.path(self._slots, context)

    def fork(self, state: DeviceTree, nodes: NDArray[np.int32]) -> DeviceTree:
        """A new tree of some nodes of another (see `LanguageModel.fork`); copies nothing.

        Raises:
            ShapeError: the nodes do not make a tree, or it is another model's.
        """
        self._require_own(state)
        with self._lock:
            return state.fork(np.ascontiguousarray(nodes, np.int32))

    def state_bytes(self, state: DeviceTree) -> int:
        """Memory that a tree holds, counted in full even where other trees share it."""
        return state.num_run * self._engine.slot_bytes + state.num_nodes * _NODE_BYTES

    def extend(
        self,
        states: Sequence[DeviceTree],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Append nodes to several trees in one forward pass (see `LanguageModel.extend`).

        Raises:
            ShapeError: the arrays do not fit together, a parent does not exist, a token is out of
                range or a path too long, or a tree is given twice; the trees are as before.
            BackendError: the device's memory is full, with the trees as before, or the model
                computes something that is no number.
        """
        if len({id(state) for state in states}) < len(states):
            raise ShapeError("a tree is given twice; need different trees")
        for state in states:
            self._require_own(state)
        with self._lock, torch.inference_mode():
            growths = [
                plan_growth(state, parent, token, self._limits)
                for state, parent, token in zip(states, parents, tokens, strict=True)
            ]
            log_prob = self._run(growths)
        if not np.isfinite(log_prob).all():
            raise BackendError("log-probabilities hold NaN or infinity; need finite weights")
        sizes = [len(part) for part in tokens]
        ends = itertools.accumulate(sizes)
        return [log_prob[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def repeat(self) -> None:
        """Start the last pass once more on the device, and wait for nothing: for who times it."""
        with self._lock, torch.inference_mode():
            self._engine.repeat()

    def _run(self, growths: Sequence[Growth]) -> NDArray[np.float32]:
        if not growths:
            return np.zeros(0, np.float32)
        taken = [self._take(len(growth.fresh)) for growth in growths]
        try:
            slots = [growth.slots_with(own) for growth, own in zip(growths, taken, strict=True)]
            rows = Rows(
                token=np.concatenate([growth.token[growth.fresh] for growth in growths]),
                depth=np.concatenate([growth.depth[growth.fresh] for growth in growths]),
                slot=np.concatenate(taken),
                parent=np.concatenate(
                    [growth.parent_slots(own) for growth, own in zip(growths, slots, strict=True)]
                ),
            )
            asked = [own[growth.asked] for growth, own in zip(growths, slots, strict=True)]
            wanted = np.concatenate([growth.tokens for growth in growths])
            log_prob = self._engine.run(rows, np.concatenate(asked), wanted)
        except BaseException:
            self._slots.drop(taken)
            raise
        for growth, own in zip(growths, taken, strict=True):
            growth.commit(own)
        return log_prob

    def _take(self, count: int) -> NDArray[np.int32]:
        if count > self._slots.num_free:
            self._slots.grow(max(2 * self._slots.capacity, self._slots.capacity + count))
            self._resize()
        return self._slots.take(count)

    def _resize(self) -> None:
        num_slots = self._slots.capacity
        try:
            with torch.inference_mode():
                self._engine.resize(num_slots)
                self._engine.prepare()
        except torch.cuda.OutOfMemoryError:
            size = num_slots * self._engine.slot_bytes >> 20
            raise BackendError(
                f"the GPU's memory does not hold {num_slots} nodes of trees, {size} MB; send "
                "smaller batches, give the prefix cache less, or use --device cpu"
            ) from None

    def _first_slots(self, most_nodes: int) -> int:
        wanted = _PASSES_KEPT * most_nodes
        if self._engine.device.type != "cuda":
            return wanted
        free, _ = torch.cuda.mem_get_info(self._engine.device)
        fitting = int(free) // _FIRST_SHARE // self._engine.slot_bytes
        return max(min(wanted, fitting), 2 * most_nodes)

    def _require_own(self, state: DeviceTree) -> None:
        if state.slots is not self._slots:
            raise ShapeError("a tree is another model's; need one that this model made")
