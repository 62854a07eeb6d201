"""The benchmark of a GPU, stage by stage: peaks and correctness, products, lists, the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import torch

from quantized_lm.bench import gpu_served
from quantized_lm.bench.gpu_checks import CheckOptions, check
from quantized_lm.bench.gpu_clock import Clock
from quantized_lm.bench.gpu_lists import ListOptions, time_lists
from quantized_lm.bench.gpu_products import (
    TRIED_TILES,
    ProductOptions,
    time_attention,
    time_outputs,
    time_peaks,
    time_products,
)
from quantized_lm.bench.gpu_report import GpuReport
from quantized_lm.bench.gpu_served import ServiceOptions
from quantized_lm.bench.gpu_targets import judge
from quantized_lm.bench.rounds import Track
from quantized_lm.bench.weights import Size
from quantized_lm.bench.workers import WorkerError
from quantized_lm.errors import DataError
from quantized_lm.files import write_atomic
from quantized_lm.ops.backend import BackendOptions
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.ops.tiles import TABLE, Tile, TileKey, write_tiles
from quantized_lm.records import read_record, write_record

REPORT = "gpu.json"
_TINY = Size(1, 32, 1, 64, vocab_size=62, lists=2, hypotheses=2)
_TINY_TOKENS = 2


@dataclass(frozen=True)
class GpuOptions:
    """What to run.

    Attributes:
        output: folder of the report, of the weights, and of the table of tiles.
        stages: keys of STAGES; of the others the report keeps what it has.
        repeats: of everything timed.
    """

    output: Path
    stages: tuple[str, ...] = ()
    checks: CheckOptions = field(default_factory=CheckOptions)
    products: ProductOptions = field(default_factory=ProductOptions)
    lists: ListOptions = field(default_factory=ListOptions)
    service: ServiceOptions = field(default_factory=ServiceOptions)
    repeats: int = 30


@dataclass(frozen=True)
class _Bench:
    options: GpuOptions
    backend: GpuBackend
    clock: Clock
    track: Track

    @property
    def folder(self) -> Path:
        """Of weights and artifacts."""
        return self.options.output / "gpu"


def rehearsal(output: Path) -> GpuOptions:
    """Every line of it on a CPU, in Triton's interpreter, on sizes of which times mean nothing."""
    products = ProductOptions(
        shapes=((32, 64),),
        outputs=((40, 64),),
        rows=(18,),
        nodes=(8,),
        heads=(1, 16),
        square=32,
        tiles=(Tile(64, 32, 4, 2),),
    )
    service = ServiceOptions(
        "tiny",
        _TINY,
        requests=2,
        warm=0,
        rates=(4.0,),
        seconds=0.5,
        senders=2,
        longest=_TINY_TOKENS,
    )
    lists = ListOptions(
        sizes={"tiny": _TINY},
        budgets=(12,),
        lstm=(1, 32, 62),
        hypotheses=2,
        longest=_TINY_TOKENS,
    )
    return GpuOptions(
        output,
        checks=CheckOptions(formats=("2bit",), shapes=((70, 100),), rows=(2,), repeats=1),
        products=products,
        lists=lists,
        service=service,
        repeats=1,
    )


def tuned(options: GpuOptions) -> GpuOptions:
    """The same with tiles tried for every product."""
    return replace(options, products=replace(options.products, tiles=TRIED_TILES))


def run(options: GpuOptions, track: Track) -> GpuReport:
    """The stages; the report is written after each.

    Raises:
        BackendError: there is no GPU, or a kernel computes something else than its definition.
        DataError: there is no such stage.
    """
    odd = [name for name in options.stages if name not in STAGES]
    if odd:
        raise DataError(f"--stage is {odd[0]!r}; need one of {', '.join(STAGES)}")
    backend = GpuBackend.create(BackendOptions(residency="packed"))
    bench = _Bench(options, backend, Clock(backend.device, options.repeats), track)
    report = _begun(bench)
    for name in options.stages or STAGES:
        report = STAGES[name](report, bench)
        report = replace(report, targets=judge(report))
        write_record(options.output / REPORT, report)
    return report


def _begun(bench: _Bench) -> GpuReport:
    """An empty report, or where only some stages are run, the last one of this machine."""
    report = GpuReport(
        device=_device_name(bench.backend),
        versions=_versions(),
        date=datetime.now(timezone.utc).date().isoformat(),
        is_rehearsal=bench.backend.device.type != "cuda",
    )
    path = bench.options.output / REPORT
    if not bench.options.stages or not path.exists():
        return report
    last = read_record(GpuReport, path, what="report of a GPU", remedy="; remove it")
    is_same = (last.device, last.versions) == (report.device, report.versions)
    return replace(last, date=report.date) if is_same else report


def _peaks(report: GpuReport, bench: _Bench) -> GpuReport:
    count = check(bench.options.checks, bench.backend)
    times = time_peaks(bench.options.products, bench.backend, bench.clock)
    return replace(report, comparisons=count, peaks=tuple(times))


def _products(report: GpuReport, bench: _Bench) -> GpuReport:
    options, backend, clock = bench.options.products, bench.backend, bench.clock
    times, tiles = time_products(options, backend, clock, bench.track)
    times += time_outputs(options, backend, clock, bench.track)
    times += time_attention(options, backend, clock)
    if tiles:
        _keep_tiles(report.device, tiles, bench.options.output)
    return replace(report, times=tuple(times))


def _lists(report: GpuReport, bench: _Bench) -> GpuReport:
    times, same = time_lists(
        bench.options.lists, bench.backend.device, bench.clock, bench.track, bench.folder
    )
    return replace(report, lists=tuple(times), same=tuple(same))


def _service(report: GpuReport, bench: _Bench) -> GpuReport:
    try:
        served = gpu_served.measure(bench.options.service, bench.folder)
    except WorkerError as error:
        return replace(report, service=None, remarks=(f"served requests: {error}",))
    return replace(report, service=served, remarks=())


STAGES: Mapping[str, Callable[[GpuReport, _Bench], GpuReport]] = MappingProxyType(
    {"peaks": _peaks, "products": _products, "lists": _lists, "service": _service}
)


def _keep_tiles(gpu: str, tiles: Mapping[TileKey, Tile], folder: Path) -> None:
    """Beside the report: whoever tuned on purpose copies it to quantized_lm/ops."""
    path = folder / TABLE
    before = path.read_text(encoding="utf-8") if path.exists() else "{}"
    write_atomic(path, write_tiles(gpu, tiles, before).encode())


def _device_name(backend: GpuBackend) -> str:
    if backend.device.type != "cuda":
        return "none, rehearsed in Triton's interpreter"
    return torch.cuda.get_device_name(backend.device)


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("torch", "triton", "secondpass")}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["driver"] = _driver()
    return found


def _driver() -> str:
    """What the driver says of itself."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text(encoding="utf-8").splitlines()[0] if path.exists() else "unknown"
