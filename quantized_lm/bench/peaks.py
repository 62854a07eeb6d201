"""The machine's limits, from the native module that the kernels are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from quantized_lm.ops import cpu

# Products of bytes, fastest first: the first that a CPU has is its int8 peak.
INT8_DOTS = (
    "int8 dpbusd, 512 bits",
    "int8 dpbusd, 256 bits",
    "int8 maddubs + madd + add, 256 bits",
)
_BESIDE_BURSTS = 3
T = TypeVar("T")


@dataclass(frozen=True)
class PeakRate:
    """One limit.

    Attributes:
        unit: "op" or "byte".
        per_second: number of threads -> units a second, of all threads together.
    """

    name: str
    unit: str
    per_second: dict[int, float]


def measure(threads: tuple[int, ...], bursts: int) -> list[PeakRate]:
    """Meter every limit at each number of threads; nothing where the native module is missing.

    Args:
        bursts: of about a millisecond; the best one of each limit counts.
    """
    measured = {count: cpu.measure_peaks(count, bursts) for count in threads}
    return [
        PeakRate(name, unit, {count: measured[count][place][2] for count in threads})
        for place, (name, unit, _) in enumerate(measured[threads[0]])
    ]


def beside(work: Callable[[], T], threads: int) -> tuple[T, float | None]:
    """Do some work and meter the peak just before and just after it.

    A shared machine is now faster, now slower: a peak of some minutes ago says nothing of now.

    Returns:
        What the work comes to; the mean of the two peaks, in billions of int8 operations a second
        by the best of INT8_DOTS, None where the CPU has none.
    """
    before = _peak_now(threads)
    done = work()
    after = _peak_now(threads)
    return done, None if before is None or after is None else (before + after) / 2.0


def _peak_now(threads: int) -> float | None:
    metered = (cpu.measure_peaks(threads, _BESIDE_BURSTS, name) for name in INT8_DOTS)
    return next((per_second / 1e9 for rates in metered for _, _, per_second in rates), None)
