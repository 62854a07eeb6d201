"""Whole n-best lists on a GPU, from token ids to scores: ours beside transformers in bfloat16."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantized_lm.bench.gpu_clock import Clock
from quantized_lm.bench.lists import Tokens, made_up_lists
from quantized_lm.bench.own import packed_path, score_tokens
from quantized_lm.bench.peers import shapes
from quantized_lm.bench.rounds import Track
from quantized_lm.bench.weights import (
    PACKINGS,
    SIZES,
    Size,
    load_packed_gpt2,
    random_gpt2,
    write_gpt2,
    write_packed,
)
from quantized_lm.models.base import LanguageModel
from quantized_lm.models.layers import load_packed, matrix_names
from quantized_lm.models.lstm import Lstm, LstmConfig
from quantized_lm.ops import BACKENDS, Backend, select_backend
from quantized_lm.ops.backend import BackendOptions
from quantized_lm.ops.device_layout import Residency
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.tree import TokenTree, build_tree

Score = Callable[[Sequence[Tokens]], list[float]]
_PACKING = "2bit, output 4bit"
_POSITIONS = 128  # of the random GPT-2s
_RESIDENCIES: tuple[Residency, ...] = ("expanded", "packed")


@dataclass(frozen=True)
class ListOptions:
    """What is timed.

    Attributes:
        sizes: GPT-2s by name. budgets: nodes of a batch of lists.
        lstm: layers, width, vocabulary of an LSTM with random weights. hypotheses: of its list.
    """

    sizes: Mapping[str, Size] = field(default_factory=lambda: dict(SIZES))
    budgets: tuple[int, ...] = (600, 1000, 2000, 4000)
    lstm: tuple[int, int, int] = (3, 2048, 16384)
    hypotheses: int = 100


@dataclass(frozen=True)
class ListTime:
    """One system on one model's lists.

    Attributes:
        nodes: of a list or a batch, the mean. median_ms, slowest_ms: wall time; the latter is the
            99th percentile.
        difference: the largest of a hypothesis's score to the CPU engine's, nats; None where it
            was not computed.
        failure: why there is no time; None where there is.
    """

    model: str
    system: str
    nodes: float
    median_ms: float
    slowest_ms: float
    difference: float | None = None
    failure: str | None = None


def time_lists(
    options: ListOptions, device: torch.device, clock: Clock, track: Track, folder: Path
) -> list[ListTime]:
    """Every model and system, one list at a time, then ours by batches."""
    times: list[ListTime] = []
    for name, size in track(list(options.sizes.items()), "models"):
        lists = made_up_lists(
            size.lists, size.vocab_size, hypotheses=size.hypotheses, seed=size.seed
        )
        for residency in _RESIDENCIES:
            model = _gpt2(name, size, folder, _with(residency))
            difference = None
            if BACKENDS["cpu"].is_available:
                on_cpu = _gpt2(name, size, folder, select_backend("cpu"))
                difference = _difference(model, on_cpu, lists[0])
            system = f"ours {_PACKING}, {residency}"
            times.append(
                _timed(
                    name,
                    system,
                    lists,
                    partial(score_tokens, model),
                    clock,
                    difference,
                )
            )
            times += [
                _time_batch(name, f"{system}, a batch", model, lists, budget, clock)
                for budget in options.budgets
            ]
        for system, score in _transformers(size, device):
            times.append(_timed(name, system, lists, score, clock))
    times += _time_lstm(options, clock)
    return times


def _gpt2(name: str, size: Size, folder: Path, backend: Backend) -> LanguageModel:
    weights = folder / f"{name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    write_gpt2(size, weights)
    path = packed_path(folder, f"{name} {_PACKING}")
    write_packed(weights, size.num_heads, PACKINGS[_PACKING], path)
    return load_packed_gpt2(weights, size.num_heads, path, backend)


def _with(residency: Residency) -> GpuBackend:
    return GpuBackend.create(BackendOptions(residency=residency))


def _difference(model: LanguageModel, other: LanguageModel, one: Sequence[Tokens]) -> float:
    ours, theirs = (np.array(score_tokens(each, one)) for each in (model, other))
    return float(np.abs(ours - theirs).max())


def _timed(
    model: str,
    system: str,
    lists: Sequence[Sequence[Tokens]],
    score: Score,
    clock: Clock,
    difference: float | None = None,
) -> ListTime:
    nodes = float(np.mean([build_tree(one).num_nodes for one in lists]))
    try:
        walls = [wall for one in lists for wall in clock.wall(partial(score, one))]
    except (RuntimeError, ImportError) as error:
        return ListTime(model, system, nodes, 0.0, 0.0, None, str(error).splitlines()[0][:160])
    median, slowest = 1e3 * np.quantile(walls, [0.5, 0.99])
    return ListTime(model, system, nodes, float(median), float(slowest), difference)


def _time_batch(
    name: str,
    system: str,
    model: LanguageModel,
    lists: Sequence[Sequence[Tokens]],
    budget: int,
    clock: Clock,
) -> ListTime:
    """As many lists in one forward pass as the budget holds."""
    trees = [build_tree(one) for one in lists]
    chosen: list[TokenTree] = []
    nodes = 0
    while not chosen or nodes < budget:
        chosen.append(trees[len(chosen) % len(trees)])
        nodes += chosen[-1].num_nodes

    def score() -> None:
        model.extend(
            [model.new_state() for _ in chosen],
            [tree.parent[1:] for tree in chosen],
            [tree.token[1:] for tree in chosen],
        )

    median, slowest = 1e3 * np.quantile(clock.wall(score), [0.5, 0.99])
    return ListTime(name, system, float(nodes), float(median), float(slowest))


def _time_lstm(options: ListOptions, clock: Clock) -> list[ListTime]:
    layers, width, vocab_size = options.lstm
    lists = made_up_lists(1, vocab_size, hypotheses=options.hypotheses, seed=12)
    times = []
    for residency in _RESIDENCIES:
        model = Lstm(LstmConfig(vocab_size, layers, width, _POSITIONS))
        model.initialize(seed=0)
        parameters = {name: p.detach().numpy() for name, p in model.named_parameters()}
        grid = Grid.named("2bit")
        packed = {name: round_to_nearest(parameters[name], grid) for name in matrix_names(model)}
        plain = {name: p for name, p in parameters.items() if name not in packed}
        loaded = load_packed(model, packed, plain, _with(residency))
        name = f"LSTM {layers} x {width}"
        times.append(
            _timed(
                name,
                f"ours 2bit, {residency}",
                lists,
                partial(score_tokens, loaded),
                clock,
            )
        )
    return times


def _transformers(size: Size, device: torch.device) -> Iterator[tuple[str, Score]]:
    """GPT2LMHeadModel in bfloat16 on padded lists, as it ships and compiled."""
    for system, compiles in (("bf16 padded, eager", False), ("bf16 padded, compiled", True)):
        if compiles and device.type != "cuda":
            continue
        try:
            model = _load_transformers(size, device)
        except ImportError as error:
            reason = str(error)

            def refuse(_: Sequence[Tokens], reason: str = reason) -> list[float]:
                raise ImportError(reason)

            yield f"transformers {system}", refuse
            continue
        run: Any = torch.compile(model, mode="reduce-overhead") if compiles else model
        yield f"transformers {system}", partial(_score_padded, run, device)


def _load_transformers(size: Size, device: torch.device) -> Any:
    library = importlib.import_module("transformers")
    config = library.GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=_POSITIONS,
        n_embd=size.model_dim,
        n_inner=size.ffn_dim,
        n_layer=size.num_layers,
        n_head=size.num_heads,
    )
    model = library.GPT2LMHeadModel(config)
    model.load_state_dict(random_gpt2(size), strict=False)
    model.tie_weights()
    return model.eval().to(device, torch.bfloat16)


@torch.inference_mode()
def _score_padded(model: Any, device: torch.device, hypotheses: Sequence[Tokens]) -> list[float]:
    inputs, targets = (torch.from_numpy(part).to(device) for part in shapes.pad(hypotheses))
    logits = model(inputs, use_cache=False).logits.float()
    at_target = logits.gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
    log_prob = (at_target - logits.logsumexp(2)) * (targets >= 0)
    return log_prob.sum(1).tolist()  # type: ignore[no-any-return]
