"""A small LSTM LM (Hochreiter and Schmidhuber, 1997): the module.

`models/plan.py` says what it computes. Every gate has an input and a recurrent matrix of its own,
each a projection that is packed by itself; only the biases stay outside. Windows are run by torch's
fused kernel, trees level by level.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.lstm_config import GATES, LstmConfig
from quantized_lm.models.tree_state import TreeState, keep

SHUT = -1e4  # a gate's pre-activation at which its sigmoid is 0, whatever else is added


@dataclass(frozen=True)
class Level:
    """Nodes of one depth, of any tree, that are run together.

    Attributes:
        tokens: (m,) int64.
        rows: (m,) int64, where in the stores of a pass their h and c go.
        above: (m,) int64, where their parents' are.
    """

    tokens: Tensor
    rows: Tensor
    above: Tensor


class LockedDropout(nn.Dropout):
    """Dropout with one mask per row for all time steps (Gal and Ghahramani, NeurIPS 2016).

    The documents of one window are one row, so they share a mask; a fresh one is drawn for every
    place and every pass, as Merity et al. (ICLR 2018) do between layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, dim) -> (T, B, dim); x itself in eval mode or at rate 0."""
        if not self.training or self.p == 0:
            return x
        return x * functional.dropout(torch.ones_like(x[:1]), self.p)


class LstmLayer(nn.Module):
    """One layer: in each gate a projection of what comes from below and one of its own past."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.ModuleDict({gate: nn.Linear(dim, dim) for gate in GATES})
        self.recurrent = nn.ModuleDict({gate: nn.Linear(dim, dim, bias=False) for gate in GATES})

    def forward(self, x: Tensor, is_gap: Tensor | None) -> Tensor:
        """Run rows from a zero state.

        At a gap all gates are shut by one more input column: h and c become 0, and no gradient
        passes. So documents can follow each other in a row: on PTB-like lines that is three times
        as fast as a padded row for each.

        Args:
            x: (T, B, dim), bfloat16 or float32; products are taken in its precision, while the
                cell state c is float32 always: bfloat16 would lose what is added to a large c.
            is_gap: (T, B) bool; None if there are none.

        Returns:
            (T, B, dim) of x's dtype.
        """
        weight = torch.cat([gate.weight for gate in _linears(self.input)]).to(x.dtype)
        recurrent = torch.cat([gate.weight for gate in _linears(self.recurrent)]).to(x.dtype)
        bias = torch.cat([gate.bias for gate in _linears(self.input)]).to(x.dtype)
        width, dim = recurrent.shape
        h = x.new_zeros(1, x.shape[1], dim)
        if is_gap is not None:
            x = torch.cat((x, is_gap[..., None].to(x.dtype)), dim=-1)
            weight = torch.cat((weight, weight.new_full((width, 1), SHUT)), dim=-1)
        hidden, _, _ = torch.lstm(
            x,
            (h, h.float()),
            (weight, recurrent, bias, torch.zeros_like(bias)),
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=False,
        )
        return hidden

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One token per row, each (M, dim) float32: the next h and c."""
        i, f, g, o = (self.input[gate](x) + self.recurrent[gate](h) for gate in GATES)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Lstm(FloatModel):
    """The LM."""

    config: LstmConfig

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(LstmLayer(config.model_dim) for _ in range(config.num_layers))
        self.drop = LockedDropout(0.0)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the weights; forget gates start open (Jozefowicz, 2015).

        As Merity et al. (2018), but for the embedding, which starts five times as wide: it is the
        output layer too, and learns faster for it.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                bound = 0.5 if name == "embedding.weight" else parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith(".f.bias") else 0.0)

    def runner(self, *, compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """What a loss calls for `forward`; a compiled one does not see into it.

        Unrolled over its time steps, the fused kernel would be neither fast nor quick to compile.
        """
        if not compiled:
            return self
        # Not a decorator, which would import the compiler wherever a model is served.
        return torch.compiler.disable(self.forward)  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, tokens: Tensor, document: Tensor) -> Tensor:
        """Hidden states of packed windows (see `FloatModel.forward`).

        A document's positions must stand together; a negative number is padding. Under autocast
        they are bfloat16, if this machine's kernel computes in it.
        """
        starts = torch.zeros_like(document, dtype=torch.bool)
        starts[:, 1:] = (document[:, 1:] != document[:, :-1]) & (document[:, 1:] >= 0)
        if not starts.any():
            return self._run_rows(tokens.T, None).transpose(0, 1).contiguous()
        batch, length = tokens.shape
        row = torch.arange(batch, device=tokens.device)[:, None]
        # Moved on by a gap for each start.
        place = torch.arange(length, device=tokens.device) + starts.cumsum(1)
        spread = tokens.new_zeros(int(place.max()) + 1, batch)
        spread[place, row] = tokens
        is_gap = torch.ones_like(spread, dtype=torch.bool)
        is_gap[place, row] = False
        return self._run_rows(spread, is_gap)[place, row]

    def _run_rows(self, tokens: Tensor, is_gap: Tensor | None) -> Tensor:
        """Everything but the output layer: (T, B) int64 -> (T, B, dim)."""
        device = tokens.device.type
        x: Tensor = self.embedding.embed(tokens).to(_product_dtype(device))
        # Autocast would hand the kernel a cell state of bfloat16.
        with torch.autocast(device, enabled=False):
            x = self.drop(x)
            for layer in self._layers():
                x = self.drop(layer(x, is_gap))
        return x

    def _run_inner_nodes(self, states: Sequence[TreeState], fresh: Sequence[Sequence[int]]) -> None:
        """Run the nodes that have children now, level by level; c and h of every layer are kept."""
        num_fresh = sum(map(len, fresh))
        if not num_fresh:
            return
        dim = self.config.model_dim
        above_roots, to_come = torch.zeros(1, dim), torch.empty(num_fresh, dim)
        stores = [
            torch.cat(
                [above_roots, *(state.kept[index] for state in states if state.kept), to_come]
            )
            for index in range(2 * len(self.layers))
        ]
        for level in _levels(states, fresh):
            x = self.embedding.embed(level.tokens)
            for layer, c, h in zip(self._layers(), stores[::2], stores[1::2], strict=True):
                x, c[level.rows] = layer.step(x, h[level.above], c[level.above])
                h[level.rows] = x
        keep(states, fresh, [store[-num_fresh:] for store in stores])

    def _layers(self) -> Iterator[LstmLayer]:
        return cast("Iterator[LstmLayer]", iter(self.layers))


def _linears(gates: nn.ModuleDict) -> list[nn.Linear]:
    return [cast("nn.Linear", gates[gate]) for gate in GATES]


def _product_dtype(device: str) -> torch.dtype:
    """What autocast asks for, where the fused kernel can do it."""
    if device != "cpu":  # cuDNN wants the cell state in the precision of its products
        return torch.float32
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: SLF001 - no public name
    is_wanted = torch.is_autocast_enabled("cpu") and torch.backends.mkldnn.enabled
    return torch.bfloat16 if is_wanted and supported() else torch.float32


def _levels(states: Sequence[TreeState], fresh: Sequence[Sequence[int]]) -> list[Level]:
    """Fresh nodes by depth, so that parents come first.

    Stores hold a row of zeros, then every state's kept rows, then all fresh rows.
    """
    nodes_at: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    old, new = 1, 1 + sum(state.num_run for state in states)
    for state, nodes in zip(states, fresh, strict=True):
        for node in nodes:
            above = _row(state, state.parent[node], old, new)
            member = (state.token[node], _row(state, node, old, new), above)
            nodes_at[state.depth[node]].append(member)
        old += state.num_run
        new += len(nodes)
    return [
        Level(*(torch.tensor(part) for part in zip(*nodes_at[depth], strict=True)))
        for depth in sorted(nodes_at)
    ]


def _row(state: TreeState, node: int, old: int, new: int) -> int:
    """Where the stores of a pass hold a node; a tree's kept rows start at `old`, fresh at `new`."""
    if node < 0:
        return 0
    slot = state.slot[node]
    return old + slot if slot < state.num_run else new + slot - state.num_run
