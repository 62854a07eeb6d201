"""Whole n-best lists on a GPU, from token ids to scores: ours beside transformers in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quantized_lm.bench.gpu_clock import Clock
from quantized_lm.bench.gpu_rivals import Rival, gpt2_rivals, lstm_rival
from quantized_lm.bench.lists import Tokens, made_up_lists
from quantized_lm.bench.own import packed_path, score_tokens
from quantized_lm.bench.rounds import Track
from quantized_lm.bench.weights import (
    PACKINGS,
    POSITIONS,
    SIZES,
    Size,
    load_packed_gpt2,
    write_gpt2,
    write_packed,
)
from quantized_lm.models.base import LanguageModel
from quantized_lm.models.device import DeviceModel
from quantized_lm.models.layers import load_packed, matrix_names
from quantized_lm.models.lstm import Lstm
from quantized_lm.models.lstm_config import LstmConfig
from quantized_lm.ops import BACKENDS, Backend, select_backend
from quantized_lm.ops.backend import BackendOptions, Residency
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.tree import TokenTree, build_tree

PACKING = "2bit, output 4bit"
LSTM = "LSTM"
_RESIDENCIES: tuple[Residency, ...] = ("expanded", "packed")
_Lists = Sequence[Sequence[Tokens]]


@dataclass(frozen=True)
class ListOptions:
    """What is timed.

    Attributes:
        sizes: GPT-2s by name. budgets: nodes of a batch of lists, at most.
        lstm: layers, width, vocabulary of an LSTM with random weights. hypotheses: of its list.
        longest: tokens of a hypothesis; the rest is cut off.
    """

    sizes: Mapping[str, Size] = field(default_factory=lambda: dict(SIZES))
    budgets: tuple[int, ...] = (600, 1000, 2000, 4000)
    lstm: tuple[int, int, int] = (3, 2048, 16384)
    hypotheses: int = 100
    longest: int | None = None


@dataclass(frozen=True)
class ListTime:
    """One system on one model's lists.

    Attributes:
        batch: most nodes of a batch; 0 for one list at a time.
        nodes: of a list or a batch, the mean. median_ms, slowest_ms: wall time; the latter is the
            99th percentile. device_ms: of the device alone, the mean; None where it is not known.
        difference: the largest of a hypothesis's score to the CPU engine's, nats; None where it
            was not computed.
        failure: why there is no time; None where there is.
    """

    model: str
    system: str
    batch: int
    nodes: float
    median_ms: float = 0.0
    slowest_ms: float = 0.0
    device_ms: float | None = None
    difference: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Sameness:
    """Whether one model's log-probabilities are the same bits.

    Attributes:
        residencies: packed and expanded. batches: a list alone, and among the others.
    """

    model: str
    residencies: bool
    batches: bool


def time_lists(
    options: ListOptions, device: torch.device, clock: Clock, track: Track, folder: Path
) -> tuple[list[ListTime], list[Sameness]]:
    """Every model and system, one list at a time, then ours by batches."""
    times: list[ListTime] = []
    same: list[Sameness] = []
    for name, size in track(list(options.sizes.items()), "models"):
        lists = cut(size.draw_lists(), options.longest)
        models = {one: _gpt2(name, size, folder, _with(one)) for one in _RESIDENCIES}
        same.append(_sameness(name, models, lists))
        for residency, model in models.items():
            difference = None
            if BACKENDS["cpu"].is_available:
                on_cpu = _gpt2(name, size, folder, select_backend("cpu"))
                difference = _difference(model, on_cpu, lists[0])
            system = f"ours {PACKING}, {residency}"
            times.append(_time_ours(name, system, model, lists, clock, difference))
            times += [
                _time_batch(name, system, model, lists, budget, clock) for budget in options.budgets
            ]
        times += _time_rivals(name, size, lists, device, clock)
    return times + _time_lstm(options, device, clock), same


def cut(lists: Sequence[Sequence[Tokens]], longest: int | None) -> list[list[Tokens]]:
    """The beginnings of all hypotheses."""
    return [[tokens[:longest] for tokens in one] for one in lists]


def write_random(name: str, size: Size, folder: Path) -> tuple[Path, Path]:
    """Float and packed weights of a random GPT-2, unless they are there; their files."""
    weights = folder / f"{name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    write_gpt2(size, weights)
    path = packed_path(folder, f"{name} {PACKING}")
    write_packed(weights, size.num_heads, PACKINGS[PACKING], path)
    return weights, path


def _gpt2(name: str, size: Size, folder: Path, backend: Backend) -> LanguageModel:
    weights, path = write_random(name, size, folder)
    return load_packed_gpt2(weights, size.num_heads, path, backend)


def _with(residency: Residency) -> GpuBackend:
    return GpuBackend.create(BackendOptions(residency=residency))


def _sameness(name: str, models: Mapping[Residency, LanguageModel], lists: _Lists) -> Sameness:
    trees = [build_tree(one) for one in lists]
    model = models["packed"]
    (alone,) = _extend(model, trees[:1])
    together = _extend(model, [*trees[1:], trees[0]])
    (expanded,) = _extend(models["expanded"], trees[:1])
    return Sameness(name, np.array_equal(alone, expanded), np.array_equal(alone, together[-1]))


def _extend(model: LanguageModel, trees: Sequence[TokenTree]) -> list[NDArray[np.float32]]:
    return model.extend(
        [model.new_state() for _ in trees],
        [tree.parent[1:] for tree in trees],
        [tree.token[1:] for tree in trees],
    )


def _difference(model: LanguageModel, other: LanguageModel, one: Sequence[Tokens]) -> float:
    ours, theirs = (np.array(score_tokens(each, one)) for each in (model, other))
    return float(np.abs(ours - theirs).max())


def _time_ours(
    name: str,
    system: str,
    model: LanguageModel,
    lists: _Lists,
    clock: Clock,
    difference: float | None = None,
) -> ListTime:
    walls, on_device = [], []
    for one in lists:
        walls += clock.wall(partial(score_tokens, model, one))
        on_device.append(_device_s(model, clock))
    timed = ListTime(name, system, 0, _mean_nodes(lists), difference=difference)
    return _with_times(timed, walls, on_device)


def _time_batch(
    name: str, system: str, model: LanguageModel, lists: _Lists, budget: int, clock: Clock
) -> ListTime:
    """As many lists in one forward pass as the budget holds, one at least."""
    trees = [build_tree(one) for one in lists]
    chosen = [trees[0]]
    nodes = trees[0].num_nodes
    while nodes + (more := trees[len(chosen) % len(trees)]).num_nodes <= budget:
        chosen.append(more)
        nodes += more.num_nodes
    walls = clock.wall(partial(_extend, model, chosen))
    on_device = [_device_s(model, clock)]
    timed = ListTime(name, f"{system}, a batch", budget, float(nodes))
    return _with_times(timed, walls, on_device)


def _time_rivals(
    name: str, size: Size, lists: _Lists, device: torch.device, clock: Clock
) -> list[ListTime]:
    try:
        rivals = gpt2_rivals(size, POSITIONS, device)
    except ImportError as error:
        return [ListTime(name, "transformers", 0, _mean_nodes(lists), failure=str(error))]
    return [_time_rival(name, rival, lists, clock) for rival in rivals]


def _time_rival(name: str, rival: Rival, lists: _Lists, clock: Clock) -> ListTime:
    timed = ListTime(name, rival.system, 0, _mean_nodes(lists))
    walls, on_device = [], []
    try:
        for one in lists:
            call = rival.prepare(one)
            if rival.is_recorded:
                on_device.append(clock.warm(call))
                walls.append(on_device[-1])
            else:
                walls += clock.wall(call)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["failed"])[0][:160]
        return replace(timed, failure=reason)
    return _with_times(timed, walls, on_device)


def _time_lstm(options: ListOptions, device: torch.device, clock: Clock) -> list[ListTime]:
    layers, width, vocab_size = options.lstm
    lists = cut(
        made_up_lists(1, vocab_size, hypotheses=options.hypotheses, seed=12), options.longest
    )
    config = LstmConfig(vocab_size, layers, width, POSITIONS)
    model = Lstm(config)
    model.initialize(seed=0)
    times = [_time_rival(LSTM, lstm_rival(model, device), lists, clock)]
    parameters = {name: p.detach().numpy() for name, p in model.named_parameters()}
    grid = Grid.named("2bit")
    packed = {name: round_to_nearest(parameters[name], grid) for name in matrix_names(model)}
    plain = {name: p for name, p in parameters.items() if name not in packed}
    for residency in _RESIDENCIES:
        loaded = load_packed(Lstm(config), packed, plain, _with(residency))
        times.append(_time_ours(LSTM, f"ours 2bit, {residency}", loaded, lists, clock))
    return times


def _device_s(model: LanguageModel, clock: Clock) -> float:
    """Seconds that the pass just run takes on the device."""
    assert isinstance(model, DeviceModel)
    return clock.queued(model.repeat)


def _mean_nodes(lists: _Lists) -> float:
    return float(np.mean([build_tree(one).num_nodes for one in lists]))


def _with_times(timed: ListTime, walls: Sequence[float], on_device: Sequence[float]) -> ListTime:
    median, slowest = 1e3 * np.quantile(walls, [0.5, 0.99])
    return replace(
        timed,
        median_ms=float(median),
        slowest_ms=float(slowest),
        device_ms=1e3 * float(np.mean(on_device)) if on_device else None,
    )
