"""GPT-2 as a graph to export: any attention mask, and log-probabilities rather than logits.

The log of the sum of exponentials is written out as max, exp, sum and log: OpenVINO computed
torch's logsumexp wrongly on the tree.
"""

from __future__ import annotations

import itertools

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from . import shapes


class Gpt2Graph(nn.Module):
    """The arguments of `shapes.Graph` to (C,) float32."""

    def __init__(self, weights: str, heads: int) -> None:
        super().__init__()
        self._heads = heads
        for name, tensor in load_file(weights).items():
            self.register_buffer(_flat(name), tensor)
        self._scale = (self.get_buffer("wte_weight").shape[1] / heads) ** -0.5
        # A copy the right way round, so that exporters see a constant second factor.
        self.register_buffer("output", self.get_buffer("wte_weight").T.contiguous())
        blocks = itertools.takewhile(
            lambda i: hasattr(self, f"h_{i}_ln_1_weight"), itertools.count()
        )
        self._num_blocks = sum(1 for _ in blocks)

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, rows: Tensor, targets: Tensor
    ) -> Tensor:
        """Run the contexts, gather at the targets."""
        x = self.get_buffer("wte_weight")[tokens] + self.get_buffer("wpe_weight")[positions]
        for index in range(self._num_blocks):
            block = f"h_{index}"
            x = x + self._attend(block, self._norm(f"{block}_ln_1", x), mask)
            wide = self._project(f"{block}_mlp_c_fc", self._norm(f"{block}_ln_2", x))
            wide = functional.gelu(wide, approximate="tanh")
            x = x + self._project(f"{block}_mlp_c_proj", wide)
        logits = self._norm("ln_f", x).flatten(0, 1) @ self.get_buffer("output")
        largest = logits.max(1, keepdim=True).values
        log_sum = largest.squeeze(1) + (logits - largest).exp().sum(1).log()
        return logits[rows, targets] - log_sum[rows]

    def _attend(self, block: str, x: Tensor, mask: Tensor) -> Tensor:
        qkv = self._project(f"{block}_attn_c_attn", x).view(*x.shape[:2], 3, self._heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * self._scale + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self._project(f"{block}_attn_c_proj", mixed)

    def _project(self, name: str, x: Tensor) -> Tensor:
        return x @ self.get_buffer(f"{name}_weight") + self.get_buffer(f"{name}_bias")

    def _norm(self, name: str, x: Tensor) -> Tensor:
        gain, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
        return functional.layer_norm(x, gain.shape, gain, bias)


def example(hypotheses: list[list[int]]) -> tuple[Tensor, ...]:
    """Arguments to trace with."""
    return tensors(shapes.padded_graph(hypotheses[:3])[0])


def tensors(graph: shapes.Graph) -> tuple[Tensor, ...]:
    """A graph's arguments in the order of ARGUMENTS."""
    return tuple(torch.from_numpy(getattr(graph, name)) for name in shapes.ARGUMENTS)


def _flat(name: str) -> str:
    return name.removeprefix("transformer.").replace(".", "_")
