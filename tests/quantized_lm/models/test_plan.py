"""A plan says everything: an interpreter that knows nothing else computes what the module does."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import load_packed, matrix_names
from quantized_lm.models.plan import LstmPlan, NormPlan, ProjectionPlan, TransformerPlan
from quantized_lm.ops.embedding import embed
from quantized_lm.ops.linear import linear
from quantized_lm.ops.reference import ReferenceBackend
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.tree import build_tree


def norm(x: Tensor, plan: NormPlan) -> Tensor:
    centered = x - x.mean() if plan.subtracts_mean else x
    y = centered / (centered.square().mean() + plan.epsilon).sqrt()
    y = y if plan.gain is None else y * torch.from_numpy(plan.gain)
    return y if plan.bias is None else y + torch.from_numpy(plan.bias)


def by_root_mean_square(x: Tensor, epsilon: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def project(x: Tensor, plan: ProjectionPlan) -> Tensor:
    bias = None if plan.bias is None else torch.from_numpy(plan.bias)
    return linear(x[None], plan.weight, bias)[0]


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "squared_relu":
        return x.clamp(min=0) ** 2
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def turn(rows: Tensor, depth: int, rates: Tensor) -> Tensor:
    a, b = rows.chunk(2, dim=-1)
    cos, sin = (depth * rates).cos(), (depth * rates).sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


@functools.singledispatch
def hidden_of_path(plan: object, tokens: list[int]) -> Tensor:
    """(depth + 1, dim): every node of one path, one after the other."""
    raise TypeError(f"no interpreter runs a {type(plan)} over {tokens}")


@hidden_of_path.register
def _(plan: TransformerPlan, tokens: list[int]) -> Tensor:
    keys: list[list[Tensor]] = [[] for _ in plan.blocks]
    values: list[list[Tensor]] = [[] for _ in plan.blocks]
    hidden = []
    for depth, token in enumerate(tokens):
        x = embed(plan.embedding, torch.tensor([token]))[0]
        if plan.normalizes_embedding:
            x = by_root_mean_square(x, plan.norm_epsilon)
        if plan.positions is not None:
            x = x + torch.from_numpy(plan.positions[depth])
        x0 = x
        for block, past_keys, past_values in zip(plan.blocks, keys, values, strict=True):
            x = block.mix[0] * x + block.mix[1] * x0
            qkv = project(norm(x, block.attention_norm), block.qkv)
            q, k, v = qkv.reshape(3, plan.num_heads, plan.model_dim // plan.num_heads)
            if plan.normalizes_qk:
                q, k = (by_root_mean_square(part, plan.norm_epsilon) for part in (q, k))
            if plan.rope_rates is not None:
                q, k = (turn(part, depth, torch.from_numpy(plan.rope_rates)) for part in (q, k))
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


@hidden_of_path.register
def _(plan: LstmPlan, tokens: list[int]) -> Tensor:
    states = [(torch.zeros(plan.model_dim), torch.zeros(plan.model_dim)) for _ in plan.layers]
    hidden = []
    for token in tokens:
        x = embed(plan.embedding, torch.tensor([token]))[0]
        for index, layer in enumerate(plan.layers):
            h, c = states[index]
            i, f, g, o = (
                project(x, below) + project(h, past)
                for below, past in zip(layer.input, layer.recurrent, strict=True)
            )
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            states[index] = (x, c)
        hidden.append(x)
    return torch.stack(hidden)


def packed(model: FloatModel, grid: Grid) -> FloatModel:
    """A copy that can tell its plan and score."""
    copied = copy.deepcopy(model)
    parameters = {name: p.numpy() for name, p in model.named_parameters()}
    matrices = {name: round_to_nearest(parameters[name], grid) for name in matrix_names(model)}
    plain = {name: p for name, p in parameters.items() if name not in matrices}
    load_packed(copied, matrices, plain, ReferenceBackend())
    return copied


def test_a_plan_is_all_an_engine_needs(model: FloatModel) -> None:
    scorer = packed(model, Grid.named("4bit", group_size=16))
    plan = scorer.plan()

    sequences = [[3, 4, 5, 6, 6], [3, 9], [22]]
    tree = build_tree(sequences)
    log_probs = scorer.extend([scorer.new_state()], [tree.parent[1:]], [tree.token[1:]])[0]
    for index, sequence in enumerate(sequences):
        ids = [0, *sequence]
        logits = linear(hidden_of_path(plan, ids), plan.embedding)
        expected = logits.log_softmax(-1)[torch.arange(len(ids)), [*sequence, 0]]
        got = log_probs[tree.path(index) - 1]
        assert got == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_plan_names_the_sizes(model: FloatModel) -> None:
    plan = packed(model, Grid.named("8bit")).plan()
    assert (plan.model_dim, plan.max_tokens) == (32, 64)
    assert plan.embedding.shape == (23, 32)


@pytest.mark.parametrize("model", ["transformer", "gpt2"], indirect=True)
def test_a_plan_names_the_sizes_of_blocks(model: FloatModel) -> None:
    plan = packed(model, Grid.named("8bit")).plan()
    assert isinstance(plan, TransformerPlan)
    assert (plan.num_heads, plan.ffn_dim) == (2, 48)
    assert [block.up.weight.shape for block in plan.blocks] == [(48, 32)] * 2
    assert plan.positions is None or plan.positions.shape == (65, 32)
    assert plan.rope_rates is None or plan.rope_rates.shape == (8,)
    arrays = [plan.final_norm.gain, plan.positions, plan.rope_rates, plan.blocks[0].qkv.bias]
    assert all(a is None or (a.dtype == np.float32 and a.flags.c_contiguous) for a in arrays)
    assert np.isfinite(plan.blocks[0].mix).all()


@pytest.mark.parametrize("model", ["lstm"], indirect=True)
def test_a_plan_has_biases_of_gates_in_the_input_alone(model: FloatModel) -> None:
    plan = packed(model, Grid.named("8bit")).plan()
    assert isinstance(plan, LstmPlan)
    for layer in plan.layers:
        assert [gate.weight.shape for gate in layer.input + layer.recurrent] == [(32, 32)] * 8
        assert all(gate.bias is not None and gate.bias.shape == (32,) for gate in layer.input)
        assert all(gate.bias is None for gate in layer.recurrent)
