"""What else could run the same lists on a GPU, in bfloat16: GPT-2s of transformers, an LSTM."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantized_lm.bench.gpu_clock import Call
from quantized_lm.bench.lists import Tokens
from quantized_lm.bench.peers import shapes
from quantized_lm.bench.weights import Size, random_gpt2
from quantized_lm.models.lstm import Lstm
from quantized_lm.models.lstm_config import GATES
from quantized_lm.tree import build_tree

EAGER, COMPILED = "transformers bf16 padded, eager", "transformers bf16 padded, compiled"
LSTM_RIVAL = "torch bf16, our tree, in a graph"
# Compiled for one length each, which takes a minute: lengths are rounded up to these.
_LENGTHS = 32


@dataclass(frozen=True)
class Rival:
    """One system.

    Attributes:
        prepare: makes the call that scores one list.
        is_recorded: whether all of that call is on the device, so that a graph of it can be made.
    """

    system: str
    prepare: Callable[[Sequence[Tokens]], Call]
    is_recorded: bool = False


def gpt2_rivals(size: Size, positions: int, device: torch.device) -> list[Rival]:
    """GPT2LMHeadModel padded, as it ships and compiled, and on our tree.

    Raises:
        ImportError: transformers is not installed.
    """
    model = _load(size, positions, device)
    found = [Rival(EAGER, partial(_padded, model, device, 1))]
    if device.type == "cuda":
        fast = torch.compile(model, mode="reduce-overhead", dynamic=False)
        found.append(Rival(COMPILED, partial(_padded, fast, device, _LENGTHS)))
    on_tree = partial(_on_tree, model, device)
    return [*found, Rival("transformers bf16, our tree, in a graph", on_tree, is_recorded=True)]


def lstm_rival(model: Lstm, device: torch.device) -> Rival:
    """The same LSTM in bfloat16 on our tree, level by level."""
    rival = Bf16Lstm(model, device)
    return Rival(LSTM_RIVAL, rival.prepare, is_recorded=True)


class Bf16Lstm:
    """A float LSTM's weights on a device, the four gates of a layer in one matrix."""

    def __init__(self, model: Lstm, device: torch.device) -> None:
        parameters = {
            name: parameter.detach().to(device, torch.bfloat16)
            for name, parameter in model.named_parameters()
        }
        self._device = device
        self._embedding = parameters["embedding.weight"]
        self._layers = [
            tuple(
                torch.cat([parameters[f"layers.{layer}.{part.format(gate)}"] for gate in GATES])
                for part in ("input.{}.weight", "input.{}.bias", "recurrent.{}.weight")
            )
            for layer in range(model.config.num_layers)
        ]

    @torch.inference_mode()
    def prepare(self, hypotheses: Sequence[Tokens]) -> Call:
        """The call that runs a list's tree."""
        tree = build_tree(hypotheses)
        run = np.unique(tree.parent[1:])  # nodes that have children, the root first
        place = np.zeros(tree.num_nodes, np.int64)
        place[run] = np.arange(len(run))
        depth = np.zeros(tree.num_nodes, np.int64)
        for node in range(1, tree.num_nodes):
            depth[node] = depth[tree.parent[node]] + 1
        above = np.where(run > 0, place[tree.parent[run]], len(run))  # the last state is zero
        by_depth = (np.flatnonzero(depth[run] == one) for one in range(tree.depth))
        levels = [(self._ints(rows), self._ints(above[rows])) for rows in by_depth]
        tokens = self._ints(tree.token[run])
        asked = self._ints(place[tree.parent[1:]]), self._ints(tree.token[1:])
        return partial(self._run, tokens, levels, asked)

    @torch.inference_mode()
    def _run(
        self, tokens: Tensor, levels: list[tuple[Tensor, Tensor]], asked: tuple[Tensor, Tensor]
    ) -> Tensor:
        x = self._embedding[tokens]
        for weight, bias, recurrent in self._layers:
            below = torch.addmm(bias, x, weight.T)
            hidden = x.new_zeros(len(x) + 1, x.shape[1])
            cell = torch.zeros_like(hidden, dtype=torch.float32)
            for rows, above in levels:
                gates = (below[rows] + hidden[above] @ recurrent.T).chunk(len(GATES), dim=1)
                i, f, g, o = (gate.float() for gate in gates)
                state = f.sigmoid() * cell[above] + i.sigmoid() * g.tanh()
                cell.index_copy_(0, rows, state)
                hidden.index_copy_(0, rows, (o.sigmoid() * state.tanh()).to(hidden.dtype))
            x = hidden[:-1]
        logits = (x @ self._embedding.T).float()
        return logits[asked] - logits.logsumexp(1)[asked[0]]

    def _ints(self, values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int64)).to(self._device)


def _load(size: Size, positions: int, device: torch.device) -> Any:
    library = importlib.import_module("transformers")
    config = library.GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=positions,
        n_embd=size.model_dim,
        n_inner=size.ffn_dim,
        n_layer=size.num_layers,
        n_head=size.num_heads,
    )
    model = library.GPT2LMHeadModel(config)
    model.load_state_dict(random_gpt2(size), strict=False)
    model.tie_weights()
    return model.eval().to(device, torch.bfloat16)


def _padded(model: Any, device: torch.device, step: int, hypotheses: Sequence[Tokens]) -> Call:
    """Every hypothesis on its own, padded at the right to a multiple of `step`."""

    @torch.inference_mode()
    def score() -> list[float]:
        inputs, targets = map(torch.from_numpy, shapes.pad(hypotheses))
        more = -inputs.shape[1] % step
        inputs = torch.nn.functional.pad(inputs, (0, more)).to(device)
        targets = torch.nn.functional.pad(targets, (0, more), value=-1).to(device)
        logits = model(inputs, use_cache=False).logits.float()
        at_target = logits.gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
        log_prob = (at_target - logits.logsumexp(2)) * (targets >= 0)
        return log_prob.sum(1).tolist()  # type: ignore[no-any-return]

    return score


def _on_tree(model: Any, device: torch.device, hypotheses: Sequence[Tokens]) -> Call:
    """Every context once, with a dense mask of who sees whom."""
    graph = shapes.tree(hypotheses).graph
    tokens, positions, mask, rows, targets = (
        torch.from_numpy(getattr(graph, name)).to(device) for name in shapes.ARGUMENTS
    )
    mask = mask[None, None].bfloat16()

    @torch.inference_mode()
    def score() -> Tensor:
        logits = (
            model(tokens, position_ids=positions[None], attention_mask=mask, use_cache=False)
            .logits[0]
            .float()
        )
        return logits[rows, targets] - logits.logsumexp(1)[rows]  # type: ignore[no-any-return]

    return score
