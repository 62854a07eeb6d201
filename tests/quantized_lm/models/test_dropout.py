"""Dropout draws as it says, the same compiled or not."""

from __future__ import annotations

import pytest
import torch

from quantized_lm.models.dropout import Dropout


def dropped(drop: Dropout, x: torch.Tensor, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    result = drop(x)
    assert isinstance(result, torch.Tensor)
    return result


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 11), (64, 333)])
def test_an_element_is_dropped_or_scaled(rate: float, shape: tuple[int, ...]) -> None:
    kept = max(1, round((1 - rate) * 256)) / 256
    x = torch.rand(shape) + 1
    result = dropped(Dropout(rate), x)
    assert result.shape == x.shape
    assert torch.allclose(result[result != 0], x[result != 0] / kept)


def test_a_rate_below_1_in_512_drops_nothing() -> None:
    x = torch.rand(300)
    for drop in (Dropout(0.001), torch.compile(Dropout(0.001), backend="aot_eager")):
        assert torch.equal(drop(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_byte_of_a_draw_drops_its_share(dtype: torch.dtype) -> None:
    is_kept = dropped(Dropout(0.25), torch.ones(8000, 8, dtype=dtype)) != 0
    assert is_kept.float().mean(0).tolist() == pytest.approx([0.75] * 8, abs=0.02)
    together = (is_kept[:, :, None] & is_kept[:, None, :]).float().mean(0)
    assert together[~torch.eye(8, dtype=torch.bool)].tolist() == pytest.approx(
        [0.75**2] * 56, abs=0.025
    )


def test_the_seed_decides_compiled_or_not() -> None:
    drop, x = Dropout(0.3), torch.rand(9, 13)
    compiled = torch.compile(drop, backend="aot_eager")
    torch.manual_seed(1)
    assert torch.equal(compiled(x), dropped(drop, x))
    assert not torch.equal(dropped(drop, x, seed=2), dropped(drop, x))


def test_gradients_pass_where_elements_do() -> None:
    x = torch.ones(50, requires_grad=True)
    result = dropped(Dropout(0.5), x)
    result.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, result.detach())
    assert 5 < (result == 0).sum() < 45


def test_nothing_is_drawn_in_eval_mode_or_at_rate_0() -> None:
    x = torch.ones(50)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
