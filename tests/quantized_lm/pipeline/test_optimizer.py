"""Muon in the precision that a device multiplies in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quantized_lm.pipeline import optimizer
from quantized_lm.pipeline.optimizer import make_optimizers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.
STEPS = 5


def _orthogonal(gradient: Tensor) -> Tensor:
    """Newton-Schulz in float64, as the paper has it."""
    a, b, c = COEFFICIENTS
    x: Tensor = gradient.double() / gradient.double().norm()
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _error(*, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> float:
    """Relative, of one update of a matrix."""
    monkeypatch.setattr(optimizer, "multiplies_in_bfloat16", lambda _device: has_bfloat16)
    gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    matrix = nn.Parameter(torch.zeros(24, 40))
    matrix.grad = gradient.clone()
    muon, _ = make_optimizers(
        [matrix], [nn.Parameter(torch.zeros(1))], matrix_lr=1.0, other_lr=1.0, weight_decay=0.0
    )
    muon.step()
    assert torch.equal(matrix.grad, gradient)
    expected = _orthogonal(gradient)
    return float((-matrix.detach().double() - expected).norm() / expected.norm())


def test_muon_is_in_float32_where_there_is_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _error(has_bfloat16=False, monkeypatch=monkeypatch) < 1e-5
    assert 1e-3 < _error(has_bfloat16=True, monkeypatch=monkeypatch) < 5e-2
