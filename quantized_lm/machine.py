"""What machine this is, for reports of what was measured on it."""

from __future__ import annotations

import platform
from pathlib import Path

# Where Linux names the processor; platform.processor() is empty there.
_CPU_INFORMATION = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Of the first core; where Linux does not tell, the kind of machine."""
    try:
        lines = _CPU_INFORMATION.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
