"""In which precision training multiplies."""

from __future__ import annotations

import platform

import torch

_X86 = ("x86_64", "AMD64")


def mixed_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the device has instructions for them, else in float32.

    A CPU without them gets the same numbers, but emulates: one with AVX2 alone multiplies a
    hundredth as fast as in float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_in_bfloat16(device))


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether it has instructions for that."""
    if device.type != "cpu":
        return True
    if platform.machine() in _X86:
        return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - no public name
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - likewise
