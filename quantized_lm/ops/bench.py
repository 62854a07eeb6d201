"""Time packed kernels against torch's float32 ones, after checking that they are right.

    python -m quantized_lm.ops.bench [--quick]

One thread, because the native kernels use one. Times are CPU time of the process, which other
processes disturb less than wall time. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from quantized_lm.ops import BACKENDS, gather_log_prob, linear, select_backend
from quantized_lm.ops.backend import Backend
from quantized_lm.ops.parity import require_parity
from quantized_lm.quant.formats import FORMATS, Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor

# Rows of x that go through the float64 check.
_PARITY_ROWS = 9
# Calls longer than this are timed this many times only: noise matters less to them.
_SLOW_CALL_S = 0.25
_SLOW_CALL_REPEATS = 3
# Fixed, so that a table sent to a file is not cut to the 80 columns of no terminal.
_TABLE_WIDTH = 110
# Where Linux names the processor; platform.processor() is empty there.
_CPU_INFORMATION = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class BenchConfig:
    """What to time.

    Attributes:
        formats: keys in FORMATS.
        rows: values of M.
        shapes: (N, K) of the projections.
        output_shape: (V, K) of the output layer.
        group_size: columns that share a scale; None for one scale per row.
        repeats: timed runs of each case; the median counts.
        run_s: least CPU time of one run, in seconds; short calls are repeated to fill it.
    """

    formats: tuple[str, ...] = tuple(FORMATS)
    rows: tuple[int, ...] = (1, 8, 32, 128, 800)
    shapes: tuple[tuple[int, int], ...] = ((512, 512), (2048, 512), (512, 2048))
    output_shape: tuple[int, int] = (16384, 512)
    group_size: int | None = None
    repeats: int = 7
    run_s: float = 0.02


QUICK = BenchConfig(
    formats=("2bit", "4bit"),
    rows=(1, 32),
    shapes=((512, 512),),
    output_shape=(2048, 512),
    repeats=3,
    run_s=0.002,
)


@dataclass(frozen=True)
class Timing:
    """One operation on one shape by one backend.

    Attributes:
        operation: "linear" or "gather_log_prob".
        backend: key in BACKENDS, or "torch" for float32 torch on unpacked weights.
        variant: instruction set or library.
        format: key in FORMATS, or "float32".
        M: rows of x.
        N: rows of the weight.
        K: columns of the weight.
        median_s: median CPU time of one call, seconds.
        spread: (third quartile - first quartile) / median.
        gflops: 2 M N K / median_s / 1e9.
        times_torch: torch's median over this median; above 1 is faster than torch.
    """

    operation: str
    backend: str
    variant: str
    format: str
    M: int
    N: int
    K: int
    median_s: float
    spread: float
    gflops: float
    times_torch: float


@dataclass(frozen=True)
class BenchReport:
    """Every timing and where it was taken.

    Attributes:
        machine: processor, and versions of Python and torch.
        threads: threads each operation used.
        timings: rows of the table.
    """

    machine: str
    threads: int
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class _Case:
    """One operation on one shape, as the timed call of whoever performs it."""

    operation: str
    shape: tuple[int, int, int]
    config: BenchConfig
    x: Tensor
    tokens: Tensor

    def packed_call(self, backend: Backend, tensor: QuantizedTensor) -> Callable[[], Tensor]:
        weight = backend.prepare(tensor)
        if self.operation == "linear":
            return lambda: linear(self.x, weight)
        rows = torch.arange(len(self.tokens))
        return lambda: gather_log_prob(self.x, weight, rows, self.tokens)

    def torch_call(self, weight: Tensor) -> Callable[[], Tensor]:
        if self.operation == "linear":
            return lambda: torch.nn.functional.linear(self.x, weight)
        rows = torch.arange(len(self.tokens))

        def gather() -> Tensor:
            logits = torch.nn.functional.linear(self.x, weight)
            return logits[rows, self.tokens] - logits.logsumexp(dim=1)

        return gather


def available_backends() -> list[Backend]:
    """Create every backend that works here; SECONDPASS_CPU_ISA chooses the cpu one's kernels."""
    return [select_backend(entry.name) for entry in BACKENDS.values() if entry.is_available]


def run(config: BenchConfig, backends: Sequence[Backend]) -> BenchReport:
    """Check every backend on every format and shape, then time them.

    Raises:
        BackendError: a backend computes something else than the format means.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            timings = [
                timing
                for operation, shape in _operations(config)
                for timing in _time_shape(operation, shape, config, backends)
            ]
    finally:
        torch.set_num_threads(threads)
    machine = f"{_processor()}, Python {platform.python_version()}, torch {torch.__version__}"
    return BenchReport(machine, 1, tuple(timings))


def _operations(config: BenchConfig) -> list[tuple[str, tuple[int, int]]]:
    return [
        *(("linear", shape) for shape in config.shapes),
        ("gather_log_prob", config.output_shape),
    ]


def _time_shape(
    operation: str,
    shape: tuple[int, int],
    config: BenchConfig,
    backends: Sequence[Backend],
) -> list[Timing]:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(shape, dtype=np.float32) / np.float32(shape[1] ** 0.5)
    tensors = [
        round_to_nearest(weight, Grid.named(name, group_size=config.group_size))
        for name in config.formats
    ]
    for tensor, backend in product(tensors, backends):
        x = generator.standard_normal((_PARITY_ROWS, shape[1]), dtype=np.float32)
        require_parity(backend, tensor, torch.from_numpy(x))
    timings = []
    for num_rows in config.rows:
        x = generator.standard_normal((num_rows, shape[1]), dtype=np.float32)
        tokens = generator.integers(0, shape[0], num_rows)
        case = _Case(
            operation,
            (num_rows, *shape),
            config,
            torch.from_numpy(x),
            torch.from_numpy(tokens),
        )
        timings += _time_case(case, torch.from_numpy(weight), tensors, backends)
    return timings


def _time_case(
    case: _Case, weight: Tensor, tensors: Sequence[QuantizedTensor], backends: Sequence[Backend]
) -> list[Timing]:
    torch_times = _measure(case.torch_call(weight), case.config)
    baseline_s = float(np.median(torch_times))
    timings = [_timing(case, ("torch", "torch", "float32"), torch_times, baseline_s)]
    for backend, tensor in product(backends, tensors):
        times = _measure(case.packed_call(backend, tensor), case.config)
        who = (backend.name, backend.variant, tensor.format)
        timings.append(_timing(case, who, times, baseline_s))
    return timings


def _measure(call: Callable[[], Tensor], config: BenchConfig) -> list[float]:
    """CPU seconds per call, one entry for each repeat; the first run warms up and is dropped."""
    start = time.process_time()
    call()
    once_s = max(time.process_time() - start, 1e-6)
    calls = max(1, int(config.run_s / once_s))
    repeats = config.repeats if once_s < _SLOW_CALL_S else _SLOW_CALL_REPEATS
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            call()
        times.append((time.process_time() - start) / calls)
    return times


def _timing(
    case: _Case, who: tuple[str, str, str], times: Sequence[float], baseline_s: float
) -> Timing:
    first_quartile, median_s, third_quartile = np.quantile(times, [0.25, 0.5, 0.75])
    operations = 2 * float(np.prod(case.shape))
    return Timing(
        case.operation,
        *who,
        *case.shape,
        median_s=float(median_s),
        spread=float((third_quartile - first_quartile) / median_s),
        gflops=operations / float(median_s) / 1e9,
        times_torch=baseline_s / float(median_s),
    )


def _processor() -> str:
    try:
        lines = _CPU_INFORMATION.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def print_report(report: BenchReport, console: Console) -> None:
    """Print a table for people, then one line of JSON for programs."""
    table = Table(title=f"{report.machine}, {report.threads} thread", title_justify="left")
    for heading in ("operation", "M x N x K", "backend", "format"):
        table.add_column(heading, no_wrap=True)
    for heading in ("median us", "spread %", "GFLOP/s", "x torch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.timings:
        table.add_row(
            row.operation,
            f"{row.M} x {row.N} x {row.K}",
            f"{row.backend} {row.variant}",
            row.format,
            f"{row.median_s * 1e6:.0f}",
            f"{row.spread * 100:.0f}",
            f"{row.gflops:.1f}",
            f"{row.times_torch:.2f}",
        )
    console.print(table)
    console.file.write(json.dumps(asdict(report)) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; `arguments` default to the process's own."""
    parser = argparse.ArgumentParser(description="Time packed kernels against torch float32.")
    parser.add_argument("--quick", action="store_true", help="few cases, a few seconds")
    options = parser.parse_args(arguments)
    report = run(QUICK if options.quick else BenchConfig(), available_backends())
    print_report(report, Console(file=sys.stdout, width=_TABLE_WIDTH))


if __name__ == "__main__":
    main()
