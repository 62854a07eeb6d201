"""In the environment with Triton: whole models in its interpreter, compared with the CPU engine.

Run by tests/gpu with TRITON_INTERPRET=1: `pytest tests/gpu_env/interpreted_models.py`.
"""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from quantized_lm.errors import BackendError, ShapeError
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import load_packed
from quantized_lm.ops import Backend, select_backend
from quantized_lm.ops.backend import BackendOptions, Residency
from quantized_lm.ops.device_layout import ResidencyChoice
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.tree import TokenTree, build_tree
from tests.quantized_lm.models.test_native import odd_model, parts_of, score

BUCKETS = (1, 4, 8, 12)
OWN = {"transformer": {"num_heads": 1}, "gpt2": {"num_heads": 2}, "lstm": {}}
FORMATS = {"blocks.0": "2bit", "blocks.1": "1bit", "layers.0.input": "2bit", "layers.1": "1bit"}


def small_model(architecture: str) -> FloatModel:
    return odd_model(architecture, **OWN[architecture], max_tokens=12)


def packed(model: FloatModel, backend: Backend, buckets: tuple[int, ...] = BUCKETS) -> Any:
    """A model of mixed formats; gates of one LSTM layer differ in how their input is rounded."""
    weights, plain = parts_of(model, Grid.named("4bit", "normal"))
    parameters = dict(model.named_parameters())
    for name in weights:
        chosen = next((kind for start, kind in FORMATS.items() if name.startswith(start)), None)
        if name.startswith("layers.1") and ".f." in name:
            chosen = None  # of another format than its neighbors
        if chosen is not None:
            weights[name] = round_to_nearest(parameters[name].numpy(), Grid.named(chosen))
    copied = copy.deepcopy(model)
    if not isinstance(backend, GpuBackend):
        return load_packed(copied, weights, plain, backend)
    return load_packed(copied, weights, plain, replace(backend, buckets=buckets))


def trees(count: int = 2) -> list[TokenTree]:
    rng = random.Random(2)
    made = []
    for index in range(count):
        base = rng.choices(range(65), k=5)
        texts = [[*base[: rng.randrange(5)], *rng.choices(range(65), k=2)] for _ in range(2)]
        made.append(build_tree(texts, context=rng.choices(range(65), k=2 * index)))
    return made


def gpu(residency: ResidencyChoice = "auto") -> GpuBackend:
    return GpuBackend.create(BackendOptions(residency=residency))


@pytest.mark.parametrize("architecture", OWN)
def test_scores_are_those_of_the_cpu_engine(architecture: str) -> None:
    model, lists = small_model(architecture), trees()
    expected = score(packed(model, select_backend("cpu", threads=1)), lists)
    device = packed(model, gpu())
    assert device.residency == ("packed" if architecture == "lstm" else "expanded")
    together = score(device, lists)
    for ours, theirs in zip(together, expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-3
    # Alone, in other buckets, and with the other residency: the same bits.
    other: Residency = "expanded" if architecture == "lstm" else "packed"
    wide = packed(model, gpu(other), (5, 16))
    assert np.array_equal(score(wide, lists[1:])[0], together[1])


@pytest.mark.parametrize("architecture", OWN)
def test_a_tree_may_grow_and_be_forked(architecture: str) -> None:
    device, tree = packed(small_model(architecture), gpu()), trees()[1]
    (expected,) = score(device, [tree])
    first = tree.base + 1
    split = first + tree.num_scored // 2
    state = device.new_state(tree.token[1:first].tolist())
    parts = [device.extend([state], [tree.parent[first:split]], [tree.token[first:split]])[0]]
    device._slots.grow(device._slots.capacity + 5)
    device._resize()
    fork = device.fork(state, np.arange(split, dtype=np.int32))
    held = device.state_bytes(fork)
    assert held == device.state_bytes(state) > 0
    before = device._slots.num_free
    rest = (tree.parent[split:], tree.token[split:])
    for grown in (fork, state):
        (late,) = device.extend([grown], [rest[0]], [rest[1]])
        assert np.array_equal(np.concatenate([*parts, late]), expected)
    del state, grown
    assert device._slots.num_free < before
    del fork
    assert device._slots.num_free > before
    with pytest.raises(ShapeError, match="node 7 stands at 1; need the root first"):
        device.fork(device.new_state([3]), np.array([0, 7], np.int32))


@pytest.mark.parametrize("architecture", OWN)
def test_the_last_pass_can_be_repeated(architecture: str) -> None:
    device = packed(small_model(architecture), gpu())
    device.repeat()  # nothing yet
    (expected,) = score(device, [trees()[0]])
    block = device._engine.block
    with torch.inference_mode():
        block._answers.zero_()
        assert not block.answers(len(expected)).any()
        device.repeat()
        assert np.array_equal(block.answers(len(expected)), expected)


def test_more_nodes_than_slots_and_buckets_change_nothing() -> None:
    model, lists = small_model("transformer"), trees()
    expected = score(packed(model, gpu()), lists)
    tight = packed(model, gpu(), (1, 4))
    states = [tight.new_state(tree.token[1 : tree.base + 1].tolist()) for tree in lists]
    capacity = tight._slots.capacity
    for _ in range(2):  # the second time in slots that the first has left or in new ones
        states = [tight.new_state(tree.token[1 : tree.base + 1].tolist()) for tree in lists]
        actual = tight.extend(
            states,
            [tree.parent[tree.base + 1 :] for tree in lists],
            [tree.token[tree.base + 1 :] for tree in lists],
        )
        for ours, theirs in zip(actual, expected, strict=True):
            assert np.array_equal(ours, theirs)
    assert tight._slots.capacity > capacity


def test_what_cannot_be_added_changes_nothing() -> None:
    device = packed(small_model("gpt2"), gpu())
    state, ids = device.new_state(), np.array([0, 1], np.int32)
    one = np.array([0], np.int32)
    for parents, tokens, message in (
        (np.array([5, 1], np.int32), ids, "the parent of node 1 is 5; need 0 to 0"),
        (ids, np.array([3, 65], np.int32), "a token is 65; need 0 to 64"),
        (ids, one, "need one shape"),
        (ids.astype(np.int64), ids, "need int32 vectors"),
        (np.arange(13, dtype=np.int32), np.ones(13, np.int32), "a path has 13 tokens"),
    ):
        with pytest.raises(ShapeError, match=message):
            device.extend([state], [parents], [tokens])
    with pytest.raises(ShapeError, match="given twice"):
        device.extend([state, state], [one, one], [one, one])
    with pytest.raises(ShapeError, match="another model's"):
        device.extend([packed(small_model("gpt2"), gpu()).new_state()], [one], [one])
    assert state.num_nodes == 1
    assert device.extend([], [], []) == []


def test_a_pass_that_fails_gives_its_slots_back(monkeypatch: pytest.MonkeyPatch) -> None:
    device = packed(small_model("gpt2"), gpu())
    state, one = device.new_state(), np.array([0], np.int32)
    free = device._slots.num_free

    def fail(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(device._engine, "run", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            device.extend([state], [one], [one])
        assert device._slots.num_free == free
        patch.setattr(device._engine, "prepare", fail)
        with pytest.raises(BackendError, match="memory does not hold"):
            device._take(free + 1)
    assert device._slots.num_free >= free
    assert state.num_nodes == 1


def test_passes_are_recorded_for_every_bucket() -> None:
    """Where there is a GPU these are CUDA graphs; here a stand-in that counts."""
    model, tree = small_model("transformer"), trees()[0]
    device = packed(model, gpu())
    (expected,) = score(device, [tree])
    replayed: list[str] = []

    def record(call):  # type: ignore[no-untyped-def]
        def replay() -> None:
            replayed.append("replay")
            call()

        return replay

    engine = device._engine
    for recorded in (engine._nodes, engine.answers):
        recorded._record = record
    engine.prepare()
    assert tuple(engine._nodes.replays) == BUCKETS[::-1]
    assert np.array_equal(score(device, [tree])[0], expected)
    assert replayed == ["replay"] * 2
    device._slots.grow(device._slots.capacity + 1)
    engine.resize(device._slots.capacity)
    assert not engine._nodes.replays


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the interpreter
def test_weights_that_are_no_numbers_are_refused() -> None:
    model = small_model("gpt2")
    with torch.no_grad():
        model.get_parameter("final_norm.bias")[0] = torch.nan
    device, one = packed(model, gpu()), np.array([0], np.int32)
    with pytest.raises(BackendError, match="need finite weights"):
        device.extend([device.new_state()], [one], [one])


def test_the_residency_is_what_was_asked_for() -> None:
    model = small_model("gpt2")
    assert packed(model, gpu("packed")).residency == "packed"
    assert packed(model, gpu("expanded")).residency == "expanded"
    with pytest.raises(BackendError, match="known are auto, packed, expanded"):
        GpuBackend.create(replace(BackendOptions(), residency="half"))
