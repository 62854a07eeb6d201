"""Contracts that every quantizer of TRAINED_QUANTIZERS keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantized_lm.errors import FormatError, RecipeError
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers import TRAINED_QUANTIZERS
from quantized_lm.quant.quantizers.learned import LearnedScale
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.quantizers.trained import TrainedQuantizer
from quantized_lm.records import build

CHOICES = [f"{name}:{table}" for name, row in FORMATS.items() for table in row.level_tables]
# At the start, against round-to-nearest on Gaussian rows: SAWB's clip is a formula, and "rated"
# minimizes bits too.
MOST_ERROR = {"learned": 1.001, "admm": 1.001, "sawb": 1.25, "rated": 1.08}

every_method = pytest.mark.parametrize("method", TRAINED_QUANTIZERS)
every_choice = pytest.mark.parametrize("choice", CHOICES)
every_tie = pytest.mark.parametrize("tie", ["row", "tensor", "cluster:2"])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(method: str, choice: str, weight: Tensor, **settings: Any) -> TrainedQuantizer:
    entry = TRAINED_QUANTIZERS[method]
    built = build(entry.settings, settings, where="settings", error=RecipeError)
    return entry.make(weight, Grid.parse(choice), built)


def packed_values(quantizer: TrainedQuantizer, weight: Tensor) -> Tensor:
    return torch.from_numpy(quantizer.quantize(weight.detach()).dequantize())


def require_packed(quantizer: TrainedQuantizer, weight: Tensor) -> None:
    """Eval mode computes with what is packed, to the bit."""
    was_training = quantizer.training
    assert torch.equal(quantizer.eval()(weight), packed_values(quantizer, weight))
    quantizer.train(was_training)


def train(quantizer: TrainedQuantizer, weight: nn.Parameter, *, steps: int, start: int = 0) -> None:
    """Updates `start` to the last of twelve towards another matrix."""
    aim = normal(*weight.shape, seed=9)
    optimizer = torch.optim.SGD([weight, *quantizer.parameters()], lr=0.05)
    for step in range(start, start + steps):
        loss = (quantizer(weight) - aim).square().mean() + quantizer.penalty(weight)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        quantizer.step(weight, (step + 1) / 12)


@every_tie
@every_choice
@every_method
def test_eval_mode_computes_with_what_is_packed(method: str, choice: str, tie: str) -> None:
    weight = nn.Parameter(normal(6, 40) * torch.logspace(-3, 0, 6)[:, None])
    quantizer = make(method, choice, weight, tie=tie)
    require_packed(quantizer, weight)
    for start in range(0, 12, 3):
        train(quantizer, weight, steps=3, start=start)
        require_packed(quantizer, weight)


def test_a_quantizer_that_packs_other_values_breaks_the_contract() -> None:
    class Broken(LearnedScale):
        def forward(self, weight: Tensor) -> Tensor:
            return super().forward(weight) * (1 + 1e-6)

    weight = normal(4, 16)
    entry = TRAINED_QUANTIZERS["learned"]
    with pytest.raises(AssertionError):
        require_packed(Broken(weight, Grid.named("2bit"), entry.settings()), weight)


@every_tie
@every_method
def test_a_killed_run_goes_on_as_if_it_had_not_been(method: str, tie: str) -> None:
    weight = nn.Parameter(normal(6, 40))
    quantizer = make(method, "4bit:quinary", weight, tie=tie)
    train(quantizer, weight, steps=7)
    fresh = make(method, "4bit:quinary", normal(6, 40, seed=3) * 7, tie=tie)
    fresh.load_state_dict(quantizer.state_dict())
    copy = nn.Parameter(weight.detach().clone())
    for one, other in ((quantizer, weight), (fresh, copy)):
        train(one, other, steps=5, start=7)
    assert torch.equal(weight, copy)
    assert torch.equal(quantizer.eval()(weight), fresh.eval()(copy))


@every_method
def test_state_of_the_last_phase_is_kept(method: str) -> None:
    weight = nn.Parameter(normal(6, 40))
    quantizer = make(method, "2bit", weight)
    train(quantizer, weight, steps=12)
    fresh = make(method, "2bit", normal(6, 40, seed=3))
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(weight), quantizer(weight))
    require_packed(fresh, weight)


@every_method
def test_it_repeats_itself(method: str) -> None:
    first, second = normal(5, 30), normal(5, 30)
    made = [make(method, "2bit", weight) for weight in (first, second)]
    for quantizer, weight in zip(made, (first, second), strict=True):
        train(quantizer, nn.Parameter(weight), steps=12)
    states = [quantizer.state_dict() for quantizer in made]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@every_choice
@every_method
def test_rows_of_zeros_and_single_rows_are_no_obstacle(method: str, choice: str) -> None:
    holed = normal(4, 24)
    holed[1:3] = 0
    for start in (holed, normal(1, 24), normal(1, 1), torch.zeros(2, 5)):
        weight = nn.Parameter(start.clone())
        quantizer = make(method, choice, weight)
        train(quantizer, weight, steps=12)
        assert weight.isfinite().all()
        assert quantizer(weight).isfinite().all()
        require_packed(quantizer, weight)


@every_choice
@every_method
def test_gradients_reach_weights_and_scales(method: str, choice: str) -> None:
    weight = nn.Parameter(normal(5, 64))
    quantizer = make(method, choice, weight)
    (quantizer(weight) * normal(5, 64, seed=4)).sum().backward()
    assert weight.grad is not None
    assert (weight.grad != 0).float().mean() > 0.5
    quantizer.step(weight, 1.0)
    (quantizer(weight) * normal(5, 64, seed=4)).sum().backward()
    for name, parameter in quantizer.named_parameters():
        assert name.endswith("log_scale")
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()


@every_choice
@every_method
def test_it_starts_no_worse_than_rounding_to_nearest(method: str, choice: str) -> None:
    weight = normal(16, 1024) * torch.logspace(-2, 0, 16)[:, None]
    rounded = torch.from_numpy(round_to_nearest(weight.numpy(), Grid.parse(choice)).dequantize())
    start = make(method, choice, weight, **({"bits": 8.0} if method == "rated" else {}))
    error = (packed_values(start, weight) - weight).square().sum()
    assert error <= MOST_ERROR[method] * (rounded - weight).square().sum()


@every_method
def test_training_makes_the_loss_smaller(method: str) -> None:
    inputs, aim = normal(256, 24), normal(8, 24, seed=2)
    # Columns that repeat one another: errors of rounding can make up for each other.
    inputs = inputs[:, :8].repeat(1, 3) + 0.2 * inputs
    weight = nn.Parameter(aim.clone())
    quantizer = make(method, "2bit:threelevel", weight)
    optimizer = torch.optim.Adam([weight, *quantizer.parameters()], lr=0.02)

    def loss() -> Tensor:
        error: Tensor = quantizer(weight) - aim
        return (inputs @ error.T).square().mean()

    before = measured(quantizer, weight, inputs, aim)
    for step in range(100):
        total = loss() + quantizer.penalty(weight)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        quantizer.step(weight, (step + 1) / 100)
    assert measured(quantizer, weight, inputs, aim) < 0.8 * before


def measured(quantizer: TrainedQuantizer, weight: Tensor, inputs: Tensor, aim: Tensor) -> float:
    error = packed_values(quantizer, weight) - aim
    return (inputs @ error.T).square().mean().item()


@every_method
def test_it_works_as_a_parametrization_that_is_compiled(method: str) -> None:
    layer, x = nn.Linear(24, 6, bias=False), normal(3, 24)
    weight = layer.weight
    quantizer = make(method, "2bit", weight)
    parametrize.register_parametrization(layer, "weight", quantizer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for progress in (0.5, 1.0):
        assert torch.equal(compiled(x), layer(x))
        compiled(x).sum().backward()
        quantizer.step(weight, progress)
        assert torch.equal(compiled(x), layer(x))
    layer.eval()
    assert torch.equal(compiled(x), nn.functional.linear(x, packed_values(quantizer, weight)))


@every_method
def test_weights_stay_float32_under_autocast(method: str) -> None:
    weight = nn.Parameter(normal(6, 24))
    quantizer = make(method, "2bit", weight)
    plain = quantizer.eval()(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(weight)
        penalty = quantizer.penalty(weight)
    assert cast.dtype == penalty.dtype == torch.float32
    assert torch.equal(cast, plain)


@every_method
def test_steps_leave_no_gradients_behind(method: str) -> None:
    weight = nn.Parameter(normal(6, 24))
    quantizer = make(method, "2bit", weight)
    for progress in (0.1, 0.9, 1.0, 1.0):
        quantizer.step(weight, progress)
    assert weight.grad is None
    assert not any(buffer.requires_grad for buffer in quantizer.buffers())
    require_packed(quantizer, weight)


@every_method
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4), "need a float32 matrix"),
        (torch.tensor([[1.0, np.nan]]), "NaN or infinity"),
        (torch.full((2, 2), 1e6), "needs a scale"),
    ],
)
def test_what_cannot_be_quantized_is_refused(method: str, weight: Tensor, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        make(method, "1bit", weight)


@every_method
def test_groups_of_columns_and_unknown_ties_are_refused(method: str) -> None:
    entry = TRAINED_QUANTIZERS[method]
    with pytest.raises(FormatError, match="one scale per row"):
        entry.make(normal(2, 8), Grid.named("2bit", group_size=4), entry.settings())
    with pytest.raises(FormatError, match="tie is 'gate'"):
        make(method, "2bit", normal(2, 8), tie="gate")
