"""Matrix products on one thread: our kernels beside torch's, and as shares of the machine's peak.

Every kernel is checked before it is timed. Calls from Python are timed by CPU time of the process,
which other processes disturb less than wall time; at M = 1 they cost more than the arithmetic, so
our kernels are also timed by wall time as the engine calls them, from C++. Loops reuse their
weights, so at M = 1 those are in cache.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quantized_lm.bench import peaks
from quantized_lm.bench.rounds import Track
from quantized_lm.machine import has_bfloat16
from quantized_lm.ops.backend import Backend
from quantized_lm.ops.cpu import CpuBackend
from quantized_lm.ops.linear import linear
from quantized_lm.ops.parity import require_parity
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor

Call = Callable[[], Tensor]
Lap = Callable[[int], float]  # seconds that so many calls take
# Rows of x, and of the weight, that go through the check.
_PARITY_ROWS, _PARITY_OUTPUTS = 9, 200
_SMALLEST_BATCH = 32  # from here on the arithmetic counts rather than reading the weights


@dataclass(frozen=True)
class GemmOptions:
    """What to time.

    Attributes:
        shapes: (K, N) of the weights.
        rows: values of M.
        repeats: timed runs of each case; the median counts.
        run_s: least CPU time of a run, in seconds; short calls are repeated to fill it.
    """

    shapes: tuple[tuple[int, int], ...] = (
        (512, 512),
        (512, 2048),
        (2048, 512),
        (512, 16384),
        (768, 768),
        (768, 3072),
        (3072, 768),
        (768, 16384),
    )
    rows: tuple[int, ...] = (1, 8, 32, 128, 800)
    repeats: int = 7
    run_s: float = 0.01


QUICK = GemmOptions(shapes=((64, 128),), rows=(1, 32), repeats=2, run_s=0.0)


@dataclass(frozen=True)
class GemmTime:
    """One kernel on one shape: y (M, N) = x (M, K) times a weight (N, K) transposed.

    Attributes:
        median_s: of one call, CPU time.
        spread: (third quartile - first) / median.
        peak_gops: of the int8 dot product on one thread, metered beside; None without one.
    """

    kernel: str
    M: int
    K: int
    N: int
    median_s: float
    spread: float
    peak_gops: float | None = None

    @property
    def gops(self) -> float:
        """Billions of operations per second; a multiplication and an addition are two."""
        return 2e-9 * self.M * self.K * self.N / self.median_s


@dataclass(frozen=True)
class GemmSummary:
    """Geometric means of one kernel's GOP/s over shapes.

    Attributes:
        batch: over M of 32 and more. single: at M = 1. Nan where nothing was timed.
        batch_share, single_share: the same of shares of the peak; None without one.
    """

    kernel: str
    batch: float
    single: float
    batch_share: float | None
    single_share: float | None


def time_gemms(options: GemmOptions, backend: Backend, track: Track) -> list[GemmTime]:
    """Check our kernels, then time them and torch's.

    Args:
        backend: ours, on one thread.

    Raises:
        BackendError: a kernel computes something else than its format means.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for shape in options.shapes:
                _require_parity(shape, backend)
            cases = [(shape, M) for shape in options.shapes for M in options.rows]
            return [
                timing
                for (K, N), M in track(cases, "matrix products")
                for timing in _time_case(M, K, N, options, backend)
            ]
    finally:
        torch.set_num_threads(threads)


def summarize(timings: Sequence[GemmTime]) -> list[GemmSummary]:
    """One line for each kernel, in the order in which they were timed."""
    summaries = []
    for kernel in dict.fromkeys(timing.kernel for timing in timings):
        own = [timing for timing in timings if timing.kernel == kernel]
        batch = [timing for timing in own if timing.M >= _SMALLEST_BATCH]
        single = [timing for timing in own if timing.M == 1]
        summaries.append(
            GemmSummary(
                kernel,
                batch=_geometric_mean(timing.gops for timing in batch),
                single=_geometric_mean(timing.gops for timing in single),
                batch_share=_mean_share(batch),
                single_share=_mean_share(single),
            )
        )
    return summaries


def _mean_share(timings: Sequence[GemmTime]) -> float | None:
    shares = [timing.gops / timing.peak_gops for timing in timings if timing.peak_gops is not None]
    return _geometric_mean(shares) if shares else None


def _time_case(
    M: int,  # noqa: N803 - the names of the field
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    options: GemmOptions,
    backend: Backend,
) -> list[GemmTime]:
    generator = torch.Generator().manual_seed(M)
    x = torch.randn(M, K, generator=generator)
    calls = _torch_calls(x, torch.randn(N, K, generator=generator) * K**-0.5)
    laps = {kernel: _lap_of(call) for kernel, call in calls.items()}
    for name, tensor in _weights(N, K).items():
        weight = backend.prepare(tensor)
        laps[f"ours {name}"] = _lap_of(partial(linear, x, weight))
        if isinstance(backend, CpuBackend):
            laps[f"ours {name}, from C++"] = partial(backend.time_linear, x, weight)
    timings = []
    for kernel, lap in laps.items():
        seconds, peak_gops = peaks.beside(partial(_measure, lap, options), threads=1)
        quartiles = np.quantile(seconds, [0.25, 0.5, 0.75])
        spread = float((quartiles[2] - quartiles[0]) / quartiles[1])
        timings.append(GemmTime(kernel, M, K, N, float(quartiles[1]), spread, peak_gops))
    return timings


def _lap_of(call: Call) -> Lap:
    def lap(repeats: int) -> float:
        start = time.process_time()
        for _ in range(repeats):
            call()
        return time.process_time() - start

    return lap


def _torch_calls(x: Tensor, weight: Tensor) -> dict[str, Call]:
    """What torch has for the job; int8 products of given codes, and with the rounding of x.

    bfloat16 only where the CPU has it: emulated it would take most of the benchmark's time.
    """
    codes = (x * 40).clamp(-127, 127).to(torch.int8)
    weight_codes = (weight * 127 / weight.abs().max()).to(torch.int8).T
    calls: dict[str, Call] = {"torch float32": lambda: functional.linear(x, weight)}
    if has_bfloat16():
        half, half_weight = x.bfloat16(), weight.bfloat16()
        calls["torch bfloat16"] = lambda: functional.linear(half, half_weight)
    return calls | {
        "torch _int_mm": lambda: torch._int_mm(codes, weight_codes),  # noqa: SLF001
        "torch dynamic int8": _dynamic_int8(x, weight),
    }


def _dynamic_int8(x: Tensor, weight: Tensor) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves quantization elsewhere; this still runs it
        step = float(weight.abs().max()) / 127
        quantized = torch.quantize_per_tensor(weight, step, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantized, None)
    return lambda: torch.ops.quantized.linear_dynamic(x, packed)


def _weights(N: int, K: int) -> dict[str, QuantizedTensor]:  # noqa: N803
    """A random weight of every format, one scale per row, and 4 bits with a scale per 64."""
    kinds: list[tuple[str, int | None]] = [(name, None) for name in FORMATS]
    kinds.insert(kinds.index(("4bit", None)) + 1, ("4bit", 64))
    return {
        name if group_size is None else f"{name} group {group_size}": _random(
            name, N, K, group_size
        )
        for name, group_size in kinds
    }


def _random(format_name: str, N: int, K: int, group_size: int | None) -> QuantizedTensor:  # noqa: N803
    generator = np.random.default_rng(0)
    row = FORMATS[format_name]
    groups = 1 if group_size is None else -(-K // group_size)
    return QuantizedTensor.from_codes(
        generator.integers(0, row.num_levels, (N, K), dtype=np.uint8),
        generator.uniform(0.5, 1.0, (N, groups)).astype(np.float16) * np.float16(0.01),
        np.array(row.levels, np.int8),
        format=format_name,
        group_size=group_size,
    )


def _require_parity(shape: tuple[int, int], backend: Backend) -> None:
    K, N = shape  # noqa: N806
    x = torch.randn(_PARITY_ROWS, K, generator=torch.Generator().manual_seed(0))
    for tensor in _weights(min(N, _PARITY_OUTPUTS), K).values():
        require_parity(backend, tensor, x)


def _measure(lap: Lap, options: GemmOptions) -> list[float]:
    """Seconds per call, one entry for each repeat; the first call warms up."""
    lap(1)
    calls = max(1, int(options.run_s / max(lap(1), 1e-6)))
    return [lap(calls) / calls for _ in range(options.repeats)]


def _geometric_mean(values: Iterable[float]) -> float:
    logs = np.log(list(values))
    return float(np.exp(logs.mean())) if len(logs) else float("nan")
