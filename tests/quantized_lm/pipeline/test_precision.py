"""bfloat16 is for devices that multiply in it."""

from __future__ import annotations

import platform

import pytest
import torch

from quantized_lm.pipeline.precision import mixed_precision


@pytest.mark.parametrize("has_instructions", [True, False])
@pytest.mark.parametrize(
    ("machine", "of_torch"),
    [
        ("x86_64", (torch.cpu, "_is_avx512_bf16_supported")),
        ("aarch64", (torch.ops.mkldnn, "_is_mkldnn_bf16_supported")),
    ],
)
def test_products_are_bfloat16_where_the_cpu_has_instructions_for_them(
    machine: str,
    of_torch: tuple[object, str],
    has_instructions: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(*of_torch, lambda: has_instructions)
    a = torch.ones(2, 2)
    with mixed_precision(torch.device("cpu")):
        assert (a @ a).dtype == (torch.bfloat16 if has_instructions else torch.float32)


def test_a_gpu_multiplies_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: (*args, options))
    expected = ("cuda", torch.bfloat16, {"enabled": True})
    assert mixed_precision(torch.device("cuda")) == expected  # type: ignore[comparison-overlap]
