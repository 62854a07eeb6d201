from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names
from quantized_lm.models.lstm import Lstm
from quantized_lm.models.lstm_config import LstmConfig
from quantized_lm.models.transformer import Transformer
from quantized_lm.models.transformer_config import TransformerConfig
from quantized_lm.pipeline.batches import IGNORED, Windows
from quantized_lm.pipeline.hessian import (
    ProbePlan,
    estimate_traces,
    hessian_product,
    mean_cross_entropy,
)
from quantized_lm.pipeline.measured import MeasuredRows, estimate_mean

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS: dict[str, Callable[[], FloatModel]] = {
    "transformer": lambda: Transformer(TransformerConfig(11, 1, 4, 1, 6, 16)),
    "lstm": lambda: Lstm(LstmConfig(11, 1, 4, 16)),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> FloatModel:
    """A few hundred weights."""
    model = MODELS[request.param]()
    model.initialize(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.embedding.weight.mul_(0.2)  # at its full width an untrained LSTM's trace is near 0
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.8)
    return model


@contextlib.contextmanager
def differentiable_twice() -> Iterator[None]:
    """Slow kernels instead of fused ones, whose gradients have no gradient."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch sets more than it is asked to
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def windows_of(seed: int, kept: int = 8) -> Windows:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 11, (2, 9))
    targets = tokens[:, 1:].copy()
    targets[0, kept:] = IGNORED
    return Windows(tokens[:, :-1], targets, np.zeros((2, 8), np.int32))


def matrices_of(model: FloatModel) -> list[torch.nn.Parameter]:
    return [model.get_parameter(name) for name in matrix_names(model)]


def exact_product(model: FloatModel, windows: Windows, z: list[Tensor]) -> tuple[Tensor, ...]:
    """H z by differentiating twice."""
    matrices = matrices_of(model)
    with differentiable_twice():
        loss = mean_cross_entropy(model, windows)
        gradient = torch.autograd.grad(loss, matrices, create_graph=True)
        return torch.autograd.grad(gradient, matrices, z)


@differentiable_twice()
def exact_traces(model: FloatModel, batches: list[Windows]) -> dict[str, float]:
    """Diagonal sums of the Hessian of the mean over all windows' tokens, weight by weight."""
    matrices = matrices_of(model)
    tokens = sum(windows.num_tokens for windows in batches)
    traces = dict.fromkeys(matrix_names(model), 0.0)
    for windows in batches:
        gradient = torch.autograd.grad(
            mean_cross_entropy(model, windows), matrices, create_graph=True
        )
        for name, matrix, part in zip(traces, matrices, gradient, strict=True):
            for row, column in np.ndindex(*matrix.shape):
                (second,) = torch.autograd.grad(part[row, column], matrix, retain_graph=True)
                traces[name] += float(second[row, column]) * windows.num_tokens / tokens
    return traces


def test_the_interval_covers_the_exact_trace_of_every_matrix(
    model: FloatModel, tmp_path: Path
) -> None:
    batches = [windows_of(0, kept=2), windows_of(1)]
    plan = ProbePlan(tolerance=0.0, max_probes=160)
    rows = MeasuredRows(tmp_path / "rows.json", "")
    estimated = estimate_traces(model, batches, rows, plan)
    exact = exact_traces(model, batches)
    assert list(estimated) == matrix_names(model)
    for name, trace in exact.items():
        assert abs(estimated[name].mean - trace) < 3 * estimated[name].standard_error
    total = estimate_mean(rows.values().sum(axis=1))
    assert abs(total.mean - sum(exact.values())) < 3 * total.standard_error
    assert total.standard_error < 0.2 * abs(total.mean)
    assert min(exact.values()) < 0  # random weights are no minimum: a trace may be negative


def test_a_product_is_that_of_differentiating_twice_and_moves_no_weight(model: FloatModel) -> None:
    matrices = matrices_of(model)
    before = [matrix.detach().clone() for matrix in matrices]
    windows = windows_of(2)
    generator = torch.Generator().manual_seed(3)
    z = [torch.randn(matrix.shape, generator=generator) for matrix in matrices]
    exact = exact_product(model, windows, z)
    for got, expected in zip(hessian_product(model, matrices, windows, z), exact, strict=True):
        assert float((got - expected).norm()) < 2e-3 * float(expected.norm())
    assert all(map(torch.equal, matrices, before))


def test_probing_stops_when_precise_and_not_before_the_least(
    model: FloatModel, tmp_path: Path
) -> None:
    def probes(plan: ProbePlan) -> int:
        rows = MeasuredRows(tmp_path / "rows.json", str(plan))
        estimate_traces(model, [windows_of(0)], rows, plan)
        return len(rows)

    assert probes(ProbePlan(tolerance=9.0, min_probes=3)) == 3
    assert probes(ProbePlan(tolerance=0.0, min_probes=3, max_probes=7)) == 7
    count = probes(ProbePlan(tolerance=0.2, min_probes=5))
    assert 5 < count < 256


def test_probes_go_on_where_they_were(model: FloatModel, tmp_path: Path) -> None:
    batches = [windows_of(0), windows_of(1)]
    path = tmp_path / "rows.json"
    estimate_traces(model, batches, MeasuredRows(path, ""), ProbePlan(0.0, 3, 3))
    resumed = estimate_traces(model, batches, MeasuredRows(path, ""), ProbePlan(0.0, 6, 6))
    whole = MeasuredRows(tmp_path / "other.json", "")
    assert resumed == estimate_traces(model, batches, whole, ProbePlan(0.0, 6, 6))
