"""Claims about linear, embed and gather_log_prob that hold for every backend."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.errors import NonFiniteError, ShapeError
from quantized_lm.ops.backend import Backend, BackendOptions, PackedWeight
from quantized_lm.ops.cpu import CpuBackend, instruction_sets
from quantized_lm.ops.cpu_operators import embed_cpu, gather_log_prob_cpu, linear_cpu
from quantized_lm.ops.embedding import embed
from quantized_lm.ops.linear import linear
from quantized_lm.ops.output import gather_log_prob
from quantized_lm.ops.reference import (
    ReferenceBackend,
    embed_reference,
    gather_log_prob_int8_reference,
    gather_log_prob_reference,
    linear_int8_reference,
    linear_reference,
)
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest


def packed(backend: Backend, grid: Grid, shape: tuple[int, int] = (70, 50)) -> PackedWeight:
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return backend.prepare(round_to_nearest(weight, grid))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("format_name", FORMATS)
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(format_name: str) -> None:
    x = normal(23, 150)
    rows, tokens = torch.arange(23), torch.arange(23) * 3
    for isa in instruction_sets():
        backend = CpuBackend.create(BackendOptions(isa, threads=3))
        weight = packed(backend, Grid.named(format_name, group_size=64), (70, 150))
        y, log_prob = linear(x, weight), gather_log_prob(x, weight, rows, tokens)
        for m in range(len(x)):
            row = x[m : m + 1]
            assert torch.equal(linear(row, weight)[0], y[m])
            alone = gather_log_prob(row, weight, indices(0), tokens[m : m + 1])
            assert torch.equal(alone[0], log_prob[m])


def test_no_rows_and_no_questions_give_empty_answers(backend: Backend) -> None:
    weight = packed(backend, Grid.named("2bit"))
    assert linear(torch.empty(0, 50), weight).shape == (0, 70)
    assert embed(weight, indices()).shape == (0, 50)
    assert gather_log_prob(normal(2, 50), weight, indices(), indices()).shape == (0,)
    assert gather_log_prob(torch.empty(0, 50), weight, indices(), indices()).shape == (0,)


def test_threads_may_share_a_weight(backend: Backend) -> None:
    weight = packed(backend, Grid.named("2bit"), (200, 50))
    inputs = [normal(m, 50) for m in range(1, 30)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: linear(x, weight), inputs))
    for x, y in zip(inputs, together, strict=True):
        assert torch.equal(y, linear(x, weight))


def test_a_bias_is_added(backend: Backend) -> None:
    weight, x, bias = packed(backend, Grid.named("4bit")), normal(3, 50), normal(70)
    torch.testing.assert_close(linear(x, weight, bias), linear(x, weight) + bias)


def test_embedded_tokens_may_repeat(backend: Backend) -> None:
    rows = embed(packed(backend, Grid.named("ternary")), indices(69, 0, 69))
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


def test_probabilities_of_all_tokens_sum_to_one(backend: Backend) -> None:
    # More tokens than one block of any backend's output layer.
    weight = packed(backend, Grid.named("2bit"), (1100, 20))
    log_prob = gather_log_prob(
        normal(1, 20), weight, torch.zeros(1100, dtype=torch.int64), torch.arange(1100)
    )
    assert float(log_prob.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_logits_far_apart_neither_overflow_nor_vanish(backend: Backend) -> None:
    weight = packed(backend, Grid.named("8bit"))
    hidden = 1000 * normal(1, 50)
    log_prob = gather_log_prob(hidden, weight, torch.zeros(70, dtype=torch.int64), torch.arange(70))
    assert bool(torch.isfinite(log_prob).all())
    assert float(log_prob.max()) == 0.0
    assert float(log_prob.min()) < -1000


def test_inputs_that_require_gradients_are_accepted(backend: Backend) -> None:
    weight = packed(backend, Grid.named("2bit"))
    x = normal(2, 50).requires_grad_()
    assert torch.equal(linear(x, weight).detach(), linear(x.detach(), weight))


def test_nan_stays_in_its_own_row_of_linear(backend: Backend) -> None:
    weight, x = packed(backend, Grid.named("2bit")), normal(9, 50)
    x[4, 7] = torch.nan
    is_nan = torch.isnan(linear(x, weight))
    assert bool(is_nan[4].all())
    assert int(is_nan.sum()) == 70


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_log_prob_is_computed_from_nan(backend: Backend, bad: float) -> None:
    hidden = normal(2, 50)
    hidden[1, 3] = bad
    with pytest.raises(NonFiniteError, match="hidden holds NaN"):
        gather_log_prob(hidden, packed(backend, Grid.named("2bit")), indices(0), indices(0))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(50),
        torch.zeros(2, 49),
        torch.zeros(2, 50, dtype=torch.float64),
        torch.zeros(50, 2).T,
    ],
)
def test_x_that_does_not_fit_is_refused(backend: Backend, x: Tensor) -> None:
    weight = packed(backend, Grid.named("2bit"))
    with pytest.raises(ShapeError, match="x is"):
        linear(x, weight)
    with pytest.raises(ShapeError, match="hidden is"):
        gather_log_prob(x, weight, indices(0), indices(0))


@pytest.mark.parametrize("bias", [torch.zeros(69), torch.zeros(70, dtype=torch.float64)])
def test_a_bias_that_does_not_fit_is_refused(backend: Backend, bias: Tensor) -> None:
    with pytest.raises(ShapeError, match="bias is"):
        linear(normal(1, 50), packed(backend, Grid.named("2bit")), bias)


@pytest.mark.parametrize(
    "tokens",
    [indices(-1), indices(70), torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1).long()],
)
def test_tokens_that_are_no_rows_of_the_weight_are_refused(
    backend: Backend, tokens: Tensor
) -> None:
    weight = packed(backend, Grid.named("2bit"))
    with pytest.raises(ShapeError, match="tokens"):
        embed(weight, tokens)
    with pytest.raises(ShapeError, match="tokens"):
        gather_log_prob(normal(1, 50), weight, indices(0), tokens)


@pytest.mark.parametrize("rows", [indices(2), indices(-1), indices(0, 0), torch.zeros(1)])
def test_rows_that_are_no_rows_of_hidden_are_refused(backend: Backend, rows: Tensor) -> None:
    with pytest.raises(ShapeError, match="rows"):
        gather_log_prob(normal(2, 50), packed(backend, Grid.named("2bit")), rows, indices(0))


def test_packed_weights_report_their_memory(backend: Backend) -> None:
    weight = packed(backend, Grid.named("4bit"))
    assert weight.size_bytes == sum(part.nbytes for part in weight.parts)
    assert weight.size_bytes < 70 * 50 * 4


def test_compiled_models_may_use_every_operation(backend: Backend) -> None:
    weight = packed(backend, Grid.named("2bit"))
    rows, tokens = indices(0, 1), indices(5, 6)

    def model(tokens_in: Tensor) -> Tensor:
        hidden = embed(weight, linear(embed(weight, tokens_in), weight).argmax(dim=1))
        return gather_log_prob(hidden, weight, rows, tokens)

    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(indices(3, 9)), model(indices(3, 9)))


def operator_calls(backend: Backend) -> list[tuple[Any, tuple[Any, ...]]]:
    weight = packed(backend, Grid.named("2bit"))
    x, rows, tokens = normal(2, 50), indices(0, 1), indices(5, 6)
    if isinstance(backend, ReferenceBackend):
        kind = ("2bit", 50)
        if backend.activations == "int8":
            return [
                (linear_int8_reference, (x, weight.parts, *kind)),
                (gather_log_prob_int8_reference, (x, rows, tokens, weight.parts, *kind)),
            ]
        return [
            (linear_reference, (x, weight.parts, *kind)),
            (embed_reference, (tokens, weight.parts, "2bit", 50, 50)),
            (gather_log_prob_reference, (x, rows, tokens, weight.parts, *kind)),
        ]
    assert isinstance(backend, CpuBackend)
    parts = [torch.from_numpy(part) for part in weight.parts]
    arguments = (parts, list(weight.layout), backend.variant, backend.pool_handle)
    return [
        (linear_cpu, (x, *arguments)),
        (embed_cpu, (tokens, *arguments)),
        (gather_log_prob_cpu, (x, rows, tokens, *arguments)),
    ]


def test_operators_are_sound_torch_operators(backend: Backend) -> None:
    for operator, arguments in operator_calls(backend):
        torch.library.opcheck(operator, arguments)
