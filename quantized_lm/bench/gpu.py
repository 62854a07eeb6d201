"""The benchmark of a GPU: peaks and correctness, products, whole lists; kept after each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from quantized_lm.artifact import bundled_path
from quantized_lm.bench import served
from quantized_lm.bench.gpu_checks import CheckOptions, check
from quantized_lm.bench.gpu_clock import Clock
from quantized_lm.bench.gpu_lists import ListOptions, ListTime, time_lists
from quantized_lm.bench.gpu_products import (
    TRIED_TILES,
    GpuTime,
    ProductOptions,
    time_attention,
    time_outputs,
    time_peaks,
    time_products,
)
from quantized_lm.bench.lists import made_up_texts
from quantized_lm.bench.options import BUNDLED
from quantized_lm.bench.rounds import Track
from quantized_lm.bench.served import Served
from quantized_lm.bench.weights import QUICK_SIZE
from quantized_lm.bench.workers import WorkerError
from quantized_lm.files import write_atomic
from quantized_lm.ops.backend import BackendOptions
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.ops.tiles import TABLE, Tile, TileKey, write_tiles

REPORT = "gpu.json"
_SERVED_PASSES, _SERVED_LISTS = 5, 12
_TINY = replace(QUICK_SIZE, model_dim=32, ffn_dim=64, vocab_size=130, lists=1, hypotheses=2)


@dataclass(frozen=True)
class GpuOptions:
    """What to run.

    Attributes:
        output: folder of the report, of the weights, and of the table of tiles.
        repeats: of everything timed. serves: whether requests to a server are timed too.
    """

    output: Path
    checks: CheckOptions = field(default_factory=CheckOptions)
    products: ProductOptions = field(default_factory=ProductOptions)
    lists: ListOptions = field(default_factory=ListOptions)
    repeats: int = 30
    serves: bool = True


@dataclass
class GpuReport:
    """Filled stage by stage.

    Attributes:
        device, versions: what it ran on. is_rehearsal: whether times mean nothing.
        comparisons: of kernels with their definitions, all equal.
    """

    device: str
    versions: dict[str, str]
    date: str
    is_rehearsal: bool
    comparisons: int = 0
    times: list[GpuTime] = field(default_factory=list)
    lists: list[ListTime] = field(default_factory=list)
    served: Served | None = None
    remarks: list[str] = field(default_factory=list)


def rehearsal(output: Path) -> GpuOptions:
    """Every line of it on a CPU, in Triton's interpreter, on sizes of which times mean nothing."""
    products = ProductOptions(
        shapes=((64, 64),),
        outputs=((150, 64),),
        rows=(1, 18),
        nodes=(8,),
        heads=(2, 16),
        square=32,
        tiles=(Tile(64, 16, 4, 2),),
    )
    return GpuOptions(
        output,
        checks=CheckOptions(shapes=((70, 100),), rows=(2,), repeats=1),
        products=products,
        lists=ListOptions(sizes={"quick": _TINY}, budgets=(20,), lstm=(1, 32, 64), hypotheses=2),
        repeats=1,
        serves=False,
    )


def run(options: GpuOptions, track: Track) -> GpuReport:
    """All stages; the report is written after each.

    Raises:
        BackendError: there is no GPU, or a kernel computes something else than its definition.
    """
    backend = GpuBackend.create(BackendOptions(residency="packed"))
    options.output.mkdir(parents=True, exist_ok=True)
    clock = Clock(backend.device, options.repeats)
    report = GpuReport(
        device=_device_name(backend),
        versions=_versions(),
        date=datetime.now(timezone.utc).date().isoformat(),
        is_rehearsal=backend.device.type != "cuda",
    )
    report.comparisons = check(options.checks, backend)
    report.times += time_peaks(options.products, backend, clock)
    _keep(report, options.output)
    times, tiles = time_products(options.products, backend, clock, track)
    report.times += times
    report.times += time_outputs(options.products, backend, clock, track)
    report.times += time_attention(options.products, backend, clock)
    if tiles:
        _keep_tiles(report.device, tiles, options.output)
    _keep(report, options.output)
    report.lists += time_lists(options.lists, backend.device, clock, track, options.output / "gpu")
    if options.serves:
        _serve(report, options.output)
    _keep(report, options.output)
    return report


def tuned(options: GpuOptions) -> GpuOptions:
    """The same with tiles tried for every product."""
    return replace(options, products=replace(options.products, tiles=TRIED_TILES))


def _keep(report: GpuReport, folder: Path) -> None:
    write_atomic(folder / REPORT, json.dumps(asdict(report), indent=1).encode())


def _keep_tiles(gpu: str, tiles: Mapping[TileKey, Tile], folder: Path) -> None:
    """Beside the report: whoever tuned on purpose copies it to quantized_lm/ops."""
    path = folder / TABLE
    before = path.read_text(encoding="utf-8") if path.exists() else "{}"
    write_atomic(path, write_tiles(gpu, tiles, before).encode())


def _serve(report: GpuReport, folder: Path) -> None:
    texts = made_up_texts(_SERVED_LISTS)
    try:
        log = folder / "gpu-server.log"
        report.served = served.measure(bundled_path(BUNDLED), texts, _SERVED_PASSES, log)
    except WorkerError as error:
        report.remarks.append(f"served requests: {error}")


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
