"""Claims about statistics-aware clips alone; contracts are in test_trained.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers.projection import project
from quantized_lm.quant.quantizers.sawb import SawbQuantizer, SawbSettings, quantize_by_sawb
from quantized_lm.quant.quantizers.ties import Ties

CHOICES = [f"{name}:{table}" for name, row in FORMATS.items() for table in row.level_tables]


def samples(name: str) -> Tensor:
    """Distributions that the coefficients were fitted to, (4, 4096)."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4, 4096, generator=generator)
    uniform = torch.rand(4, 4096, generator=generator).clamp(1e-6, 1 - 1e-6)
    return {
        "gaussian": normal,
        "laplace": (uniform - 0.5).sign() * -(1 - 2 * (uniform - 0.5).abs()).log(),
        "logistic": (uniform / (1 - uniform)).log(),
    }[name]


def test_the_clip_is_the_formula() -> None:
    weight = samples("gaussian")
    clip = 3.12 * weight.square().mean(1).sqrt() - 2.064 * weight.abs().mean(1)
    scale = quantize_by_sawb(weight.numpy(), Grid.named("2bit")).scale
    torch.testing.assert_close(
        torch.from_numpy(scale).flatten().float(), clip / 3, rtol=1e-3, atol=0
    )


def test_one_bit_is_sign_times_mean() -> None:
    weight = samples("gaussian")
    values = torch.from_numpy(quantize_by_sawb(weight.numpy(), Grid.named("1bit")).dequantize())
    expected = weight.sign() * weight.abs().mean(1, keepdim=True)
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("distribution", ["gaussian", "laplace", "logistic"])
def test_the_clip_is_near_the_best(choice: str, distribution: str) -> None:
    weight, grid = samples(distribution), Grid.parse(choice)
    quantizer = SawbQuantizer(weight, grid, SawbSettings())
    best = project(weight, grid)
    rounded = best.scale * quantizer.levels.values[best.codes.int()]
    error = (quantizer(weight) - weight).square().mean()
    # 8 bits: the clip of one distribution differs little from that of another, its error much.
    most = 2.5 if choice.startswith("8bit") else 1.1
    assert error <= most * (rounded - weight).square().mean()


def test_a_negative_clip_becomes_the_largest_weight() -> None:
    weight = torch.tensor([[-0.5, 0.5, 0.5, -0.5]])  # c0 + c1 < 0 with 4 bits
    assert quantize_by_sawb(weight.numpy(), Grid.named("4bit")).scale.item() == pytest.approx(
        0.5 / 15, rel=1e-3
    )


def test_the_clip_follows_the_weight() -> None:
    weight = samples("gaussian")
    quantizer = SawbQuantizer(weight, Grid.named("2bit"), SawbSettings())
    torch.testing.assert_close(quantizer(2 * weight), 2 * quantizer(weight), rtol=1e-3, atol=0)


def test_one_clip_for_a_tensor_takes_the_statistics_of_all_rows() -> None:
    weight = torch.cat([samples("gaussian"), 3 * samples("gaussian")])
    quantizer = SawbQuantizer(weight, Grid.named("2bit"), SawbSettings(tie="tensor"))
    whole = SawbQuantizer(weight.reshape(1, -1), Grid.named("2bit"), SawbSettings())
    assert torch.equal(quantizer(weight).reshape(1, -1), whole(weight.reshape(1, -1)))


def test_gradients_stop_at_the_clip() -> None:
    weight = nn.Parameter(samples("gaussian"))
    quantizer = SawbQuantizer(weight, Grid.named("2bit"), SawbSettings())
    quantizer(weight).sum().backward()
    scale = torch.from_numpy(quantizer.quantize(weight.detach()).scale.astype("float32"))
    assert weight.grad is not None
    assert torch.equal(weight.grad, (weight.abs() <= 3 * scale).float())


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(FormatError, match="no coefficients for levels \\(0, 5\\)"):
        SawbQuantizer(torch.ones(2, 2), Grid("1bit", (0, 5)), SawbSettings())


def test_clusters_are_those_of_the_first_weight() -> None:
    weight = samples("gaussian") * torch.tensor([[1.0], [8.0], [1.1], [8.1]])
    quantizer = SawbQuantizer(weight, Grid.named("2bit"), SawbSettings(tie="cluster:2"))
    scale = quantizer.quantize(weight).scale.ravel()
    assert scale[0] == scale[2] < scale[1] == scale[3]
    assert Ties(weight, "cluster:2").count == 2
