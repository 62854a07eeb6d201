"""A plan says everything: an interpreter that knows nothing else computes what the module does."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.models.layers import load_packed, matrix_names
from quantized_lm.models.plan import NormPlan, ProjectionPlan, TransformerPlan
from quantized_lm.models.tree_transformer import TreeTransformer
from quantized_lm.ops import embed, linear
from quantized_lm.ops.reference import ReferenceBackend
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.tree import build_tree


def norm(x: Tensor, plan: NormPlan) -> Tensor:
    centered = x - x.mean() if plan.subtracts_mean else x
    y = centered / (centered.square().mean() + plan.epsilon).sqrt()
    y = y if plan.gain is None else y * plan.gain
    return y if plan.bias is None else y + plan.bias


def by_root_mean_square(x: Tensor, epsilon: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def project(x: Tensor, plan: ProjectionPlan) -> Tensor:
    return linear(x[None], plan.weight, plan.bias)[0]


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "squared_relu":
        return x.clamp(min=0) ** 2
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def turn(rows: Tensor, depth: int, rates: Tensor) -> Tensor:
    a, b = rows.chunk(2, dim=-1)
    cos, sin = (depth * rates).cos(), (depth * rates).sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def hidden_of_path(plan: TransformerPlan, tokens: list[int]) -> Tensor:
    """(depth + 1, dim): every node of one path, one after the other."""
    keys: list[list[Tensor]] = [[] for _ in plan.blocks]
    values: list[list[Tensor]] = [[] for _ in plan.blocks]
    hidden = []
    for depth, token in enumerate(tokens):
        x = embed(plan.embedding, torch.tensor([token]))[0]
        if plan.normalizes_embedding:
            x = by_root_mean_square(x, plan.norm_epsilon)
        if plan.positions is not None:
            x = x + plan.positions[depth]
        x0 = x
        for block, past_keys, past_values in zip(plan.blocks, keys, values, strict=True):
            x = block.mix[0] * x + block.mix[1] * x0
            qkv = project(norm(x, block.attention_norm), block.qkv)
            q, k, v = qkv.reshape(3, plan.num_heads, plan.model_dim // plan.num_heads)
            if plan.normalizes_qk:
                q, k = (by_root_mean_square(part, plan.norm_epsilon) for part in (q, k))
            if plan.rope_rates is not None:
                q, k = (turn(part, depth, plan.rope_rates) for part in (q, k))
            past_keys.append(k)
            past_values.append(v)
            mixed = []
            for head in range(plan.num_heads):
                seen = torch.stack([past[head] for past in past_keys])
                weights = (seen @ q[head] / math.sqrt(len(q[head]))).softmax(0)
                mixed.append(weights @ torch.stack([past[head] for past in past_values]))
            x = x + project(torch.cat(mixed), block.out)
            inner = activate(project(norm(x, block.ffn_norm), block.up), plan.activation)
            x = x + project(inner, block.down)
        hidden.append(norm(x, plan.final_norm))
    return torch.stack(hidden)


def test_a_plan_is_all_an_engine_needs(model: TreeTransformer) -> None:
    parameters = {name: p.numpy() for name, p in model.named_parameters()}
    grid = Grid.named("4bit", group_size=16)
    packed = {name: round_to_nearest(parameters[name], grid) for name in matrix_names(model)}
    plain = {name: p for name, p in parameters.items() if name not in packed}
    packed_model = copy.deepcopy(model)
    scorer = load_packed(packed_model, packed, plain, ReferenceBackend())
    plan = packed_model.plan()

    sequences = [[3, 4, 5, 6, 6], [3, 9], [22]]
    tree = build_tree(sequences)
    log_probs = scorer.extend([scorer.new_state()], [tree.parent[1:]], [tree.token[1:]])[0]
    for index, sequence in enumerate(sequences):
        ids = [0, *sequence]
        logits = linear(hidden_of_path(plan, ids), plan.embedding)
        expected = logits.log_softmax(-1)[torch.arange(len(ids)), [*sequence, 0]]
        got = log_probs[tree.path(index) - 1]
        assert got == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_plan_names_the_sizes(model: TreeTransformer) -> None:
    packed_model = copy.deepcopy(model)
    parameters = {name: p.numpy() for name, p in model.named_parameters()}
    grid = Grid.named("8bit")
    packed = {name: round_to_nearest(parameters[name], grid) for name in matrix_names(model)}
    plain = {name: p for name, p in parameters.items() if name not in packed}
    load_packed(packed_model, packed, plain, ReferenceBackend())
    plan = packed_model.plan()
    assert (plan.model_dim, plan.num_heads, plan.ffn_dim, plan.max_tokens) == (32, 2, 48, 64)
    assert plan.embedding.shape == (23, 32)
    assert [block.up.weight.shape for block in plan.blocks] == [(48, 32)] * 2
    assert plan.positions is None or plan.positions.shape == (65, 32)
    assert plan.rope_rates is None or plan.rope_rates.shape == (8,)
    tensors = [plan.final_norm.gain, plan.positions, plan.rope_rates, plan.blocks[0].qkv.bias]
    assert all(t is None or (t.dtype == torch.float32 and t.is_contiguous()) for t in tensors)
    assert np.isfinite(plan.blocks[0].mix).all()
