"""Claims about scales as they are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantized_lm.quant.quantizers.scales import log_of, scale_of, stored_scale


def test_scales_are_what_float16_stores() -> None:
    scale = torch.logspace(-9, 6, 1000)
    expected = np.clip(scale.numpy(), 2.0**-24, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(stored_scale(scale).numpy(), expected)


@pytest.mark.parametrize("bits", [0, 1, 2, 5, 9])
def test_few_mantissa_bits_leave_few_scales_near_the_exact_ones(bits: int) -> None:
    scale = torch.linspace(1, 2, 4000)
    stored = stored_scale(scale, bits)
    assert len(set(stored.tolist())) == 2**bits + 1
    assert ((stored - scale).abs() <= 2.0 ** -(bits + 1)).all()
    assert torch.equal(stored, stored.half().float())


def test_halves_go_to_the_even_mantissa_as_in_float16() -> None:
    assert stored_scale(torch.tensor([1.125, 1.375]), 2).tolist() == [1.0, 1.5]


def test_the_gradient_is_that_of_the_exact_scale() -> None:
    log_scale = torch.tensor([0.3, -4.0], requires_grad=True)
    scale_of(log_scale, 1).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_scale.grad, log_scale.detach().exp())


def test_a_stored_scale_survives_its_logarithm() -> None:
    scale = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    normal = scale[scale >= 2.0**-14]
    assert torch.equal(scale_of(log_of(normal)), normal)
    assert torch.equal(scale_of(scale.log()), scale)


def test_a_learned_scale_stays_above_zero_and_finite() -> None:
    scale = scale_of(torch.tensor([-99.0, 99.0]))
    assert scale.tolist() == [2.0**-24, 65504.0]
    assert log_of(torch.zeros(1)).isfinite().all()
