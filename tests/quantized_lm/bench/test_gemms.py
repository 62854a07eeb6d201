"""Claims about the matrix products: right before fast, and shares of the peak."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from quantized_lm.bench import gemms, peaks
from quantized_lm.bench.gemms import GemmOptions, GemmTime, summarize, time_gemms
from quantized_lm.errors import BackendError
from quantized_lm.ops import cpu, select_backend
from quantized_lm.ops.backend import PackedWeight
from quantized_lm.ops.reference import ReferenceBackend

T = TypeVar("T")
TINY = GemmOptions(shapes=((64, 8),), rows=(1, 32), repeats=2, run_s=0.0)


def untracked(items: Sequence[T], _: str) -> Iterable[T]:
    """No progress is shown."""
    return items


@dataclass(frozen=True)
class WrongBackend(ReferenceBackend):
    """Fast and wrong."""

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """Return zeros."""
        return torch.zeros(len(x), weight.shape[0])


def test_every_format_is_timed_beside_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(gemms, "has_bfloat16", lambda: True)
    timings = time_gemms(TINY, ReferenceBackend(), untracked)
    kernels = [timing.kernel for timing in timings if timing.M == 1]
    assert kernels[:4] == ["torch float32", "torch bfloat16", "torch _int_mm", "torch dynamic int8"]
    assert kernels[4:] == [
        f"ours {name}" for name in ("1bit", "ternary", "2bit", "4bit", "4bit group 64", "8bit")
    ]
    assert all(timing.gops > 0 and timing.spread >= 0 for timing in timings)
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(gemms, "has_bfloat16", lambda: False)
    timings = time_gemms(TINY, ReferenceBackend(), untracked)
    assert "torch bfloat16" not in {timing.kernel for timing in timings}


def test_the_native_kernels_are_also_timed_from_cpp() -> None:
    if cpu.why_unavailable() is not None:
        pytest.skip("the native module is not built")
    timings = time_gemms(TINY, select_backend("cpu", threads=1), untracked)
    assert "ours 4bit group 64, from C++" in {timing.kernel for timing in timings}
    assert all(timing.gops > 0 for timing in timings)


def test_a_wrong_backend_is_not_timed() -> None:
    with pytest.raises(BackendError, match="linear of reference"):
        time_gemms(TINY, WrongBackend(), untracked)


def test_means_are_geometric_and_split_by_rows() -> None:
    # 2 M K N = 2e9 operations, so GOP/s are 2 / seconds.
    timings = [
        GemmTime("ours", 1, 10**5, 10**4, 0.5, 0.0, 800.0),
        GemmTime("ours", 100, 10**4, 10**3, 0.02, 0.0, 400.0),
        GemmTime("ours", 1000, 10**3, 10**3, 0.005, 0.0, 400.0),
    ]
    (summary,) = summarize(timings)
    assert (summary.single, summary.single_share) == pytest.approx((4.0, 0.005))
    assert (summary.batch, summary.batch_share) == pytest.approx((200.0, 0.5))
    (summary,) = summarize([replace(timings[0], peak_gops=None)])
    assert math.isnan(summary.batch)
    assert (summary.batch_share, summary.single_share) == (None, None)


def test_slow_calls_are_not_repeated_to_fill_a_run() -> None:
    calls: list[int] = []

    def lap(repeats: int) -> float:
        calls.append(repeats)
        return repeats * 0.01

    assert gemms._measure(lap, GemmOptions(repeats=3, run_s=0.0)) == pytest.approx([0.01] * 3)
    assert calls == [1, 1, 1, 1, 1]
    assert gemms._measure(lap, GemmOptions(repeats=1, run_s=0.05)) == pytest.approx([0.01])
    assert calls[-1] == 5


def test_peaks_are_metered_for_every_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(threads: int, _: int) -> list[tuple[str, str, float]]:
        return [(peaks.INT8_DOTS[0], "op", 1e9 * threads), ("read", "byte", 2e9)]

    monkeypatch.setattr(cpu, "measure_peaks", measure)
    rates = peaks.measure((1, 2), bursts=1)
    assert rates[0].per_second == {1: 1e9, 2: 2e9}


def test_this_machine_has_peaks() -> None:
    rates = peaks.measure((1,), bursts=1)
    for rate in rates:
        assert rate.unit in {"op", "byte"}
        assert rate.per_second[1] > 1e8, rate.name
        assert [name for name, _, _ in cpu.measure_peaks(1, 1, rate.name)] == [rate.name]
    assert cpu.measure_peaks(1, 1, "none of this name") == []


@pytest.mark.parametrize("has_from", range(len(peaks.INT8_DOTS)))
def test_the_best_peak_is_metered_on_both_sides_of_some_work(
    has_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = [1e9]

    best = peaks.INT8_DOTS[has_from:]

    def measure(threads: int, _: int, only: str) -> list[tuple[str, str, float]]:
        return [(only, "op", speed[0] * threads / (1 + best.index(only)))] if only in best else []

    def work() -> str:
        speed[0] = 3e9
        return "done"

    monkeypatch.setattr(cpu, "measure_peaks", measure)
    assert peaks.beside(work, threads=2) == ("done", 4.0)
    monkeypatch.setattr(cpu, "measure_peaks", lambda *_: [])
    assert peaks.beside(work, threads=2) == ("done", None)
