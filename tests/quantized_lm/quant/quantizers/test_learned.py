"""Claims about learned scales alone; contracts are in test_trained.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.learned import LearnedScale, LearnedSettings


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("tie", "count"), [("row", 9), ("tensor", 1), ("cluster:3", 3)])
def test_a_tie_decides_how_many_scales_are_learned(tie: str, count: int) -> None:
    weight = normal(9, 32) * torch.logspace(-2, 0, 9)[:, None]
    quantizer = LearnedScale(weight, Grid.named("2bit"), LearnedSettings(tie=tie))
    assert quantizer.log_scale.shape == (count, 1)
    assert len(set(quantizer.quantize(weight).scale.ravel().tolist())) == count


def test_few_mantissa_bits_leave_few_scales() -> None:
    weight = normal(200, 32)
    coarse = LearnedScale(weight, Grid.named("2bit"), LearnedSettings(scale_mantissa_bits=1))
    assert len(set(coarse.quantize(weight).scale.ravel().tolist())) <= 6


def test_gradients_are_those_of_learned_step_size() -> None:
    # Esser et al., equation 3: level - ratio inside the range, the outermost level outside it.
    weight = nn.Parameter(torch.tensor([[0.9, -2.2, 7.0]]))
    quantizer = LearnedScale(weight, Grid.named("2bit"), LearnedSettings())
    with torch.no_grad():
        quantizer.log_scale.fill_(0.0)
    quantizer(weight).backward(torch.tensor([[1.0, 10.0, 100.0]]))
    assert weight.grad is not None
    assert quantizer.log_scale.grad is not None
    assert weight.grad.tolist() == [[1.0, 10.0, 0.0]]
    expected = (1 - 0.9) + 10 * (-3 + 2.2) + 100 * 3
    assert quantizer.log_scale.grad.item() == pytest.approx(expected)


def test_the_trust_region_reaches_half_a_step_beyond_the_levels() -> None:
    weight = nn.Parameter(torch.tensor([[0.0, 3.9, -3.9, 4.1, -4.1]]))
    quantizer = LearnedScale(weight, Grid.named("2bit"), LearnedSettings(trusts_half_steps=True))
    with torch.no_grad():
        quantizer.log_scale.fill_(0.0)
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1, 1, 1, 0, 0]]


def test_trust_counts_no_weight_twice() -> None:
    weight = nn.Parameter(torch.tensor([[-127.7, -128.3, 127.3, 127.7, 5.0]]))
    settings = LearnedSettings(trusts_half_steps=True)
    quantizer = LearnedScale(weight, Grid.named("8bit"), settings)  # levels -128 to 127
    with torch.no_grad():
        quantizer.log_scale.fill_(0.0)
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1, 1, 1, 0, 1]]


@pytest.mark.parametrize("bits", [-1, 11])
def test_more_bits_than_float16_has_are_refused(bits: int) -> None:
    with pytest.raises(FormatError, match="need 0 to 10"):
        LearnedSettings(scale_mantissa_bits=bits)
