"""What a benchmark of a GPU found."""

from __future__ import annotations

from dataclasses import dataclass

from quantized_lm.bench.gpu_lists import ListTime, Sameness
from quantized_lm.bench.gpu_products import GpuTime
from quantized_lm.bench.gpu_served import ServiceReport


@dataclass(frozen=True)
class Target:
    """One number that was promised.

    Attributes:
        what: is measured. asked: in words, with the limit. found: the worst; None where it was not
            measured, and then it does not hold.
    """

    what: str
    asked: str
    found: float | None
    holds: bool


@dataclass(frozen=True)
class GpuReport:
    """Filled stage by stage.

    Attributes:
        device, versions: what it ran on. is_rehearsal: whether times mean nothing.
        comparisons: of kernels with their definitions, all equal.
        times: of products, output layers and attention.
        remarks: why something is missing.
    """

    device: str
    versions: dict[str, str]
    date: str
    is_rehearsal: bool
    comparisons: int = 0
    peaks: tuple[GpuTime, ...] = ()
    times: tuple[GpuTime, ...] = ()
    lists: tuple[ListTime, ...] = ()
    same: tuple[Sameness, ...] = ()
    service: ServiceReport | None = None
    targets: tuple[Target, ...] = ()
    remarks: tuple[str, ...] = ()
