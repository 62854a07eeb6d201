"""What machine this is."""

from __future__ import annotations

import platform
from pathlib import Path

# Where Linux names the processor; platform.processor() is empty there.
_CPU_INFORMATION = Path("/proc/cpuinfo")
_X86 = ("x86_64", "AMD64")


def processor_name() -> str:
    """Of the first core; where Linux does not tell, the kind of machine."""
    try:
        lines = _CPU_INFORMATION.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for products in bfloat16. Needs torch.

    Torch emulates what is missing: with AVX2 alone at a hundredth of float32's speed.
    """
    import torch  # noqa: PLC0415 - reports are read without it

    if platform.machine() in _X86:
        return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - no public name
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - likewise
