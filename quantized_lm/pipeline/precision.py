"""In which precision training multiplies."""

from __future__ import annotations

import torch

from quantized_lm.machine import has_bfloat16


def mixed_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the device has instructions for them, else in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_in_bfloat16(device))


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether it has instructions for that."""
    return device.type != "cpu" or has_bfloat16()
