"""The story of a run: peaks, matrix products, whole lists, memory, a served request."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from quantized_lm.artifact import bundled_path
from quantized_lm.bench import gemms, lists, memory, peaks, served
from quantized_lm.bench.installs import Environment, last_line, outside_environment
from quantized_lm.bench.memory import Memory
from quantized_lm.bench.options import BUNDLED, BenchOptions
from quantized_lm.bench.report import METHOD, Report, describe_machine
from quantized_lm.bench.rounds import Track
from quantized_lm.bench.served import Served
from quantized_lm.bench.sets import (
    Setting,
    bundled_set,
    bundled_task,
    gpt2_artifact,
    gpt2_set,
    gpt2_task,
)
from quantized_lm.bench.systems import CHART_REQUIREMENTS, THREADS
from quantized_lm.bench.workers import WorkerError
from quantized_lm.files import write_atomic
from quantized_lm.ops import select_backend

_SERVED_PACKING = "4bit"
_SERVED_PASSES = 5
Texts = Mapping[str, Sequence[tuple[str, ...]]]


def run(options: BenchOptions, track: Track) -> Report:
    """Measure everything that is asked for.

    Raises:
        BackendError: the native kernels are missing or wrong.
        DataError: a file of lists cannot be read.
    """
    texts = _texts(options) if options.bundled else {}  # a bad file costs no hour of work
    rates = peaks.measure((1, THREADS), options.bursts)
    setting = Setting(options, Environment(options.output / "peers"), track)
    timings = gemms.time_gemms(options.gemm, select_backend("cpu", threads=1), track)
    if options.peers:
        setting.install_peers()
    sets = [gpt2_set(name, size, setting) for name, size in options.sizes.items()]
    sets += [bundled_set(name, some, setting) for name, some in texts.items()]
    remarks: list[str] = []
    return Report(
        machine=describe_machine(),
        threads=THREADS,
        method=METHOD,
        peaks=tuple(rates),
        gemms=tuple(timings),
        gemm_summaries=tuple(gemms.summarize(timings)),
        list_sets=tuple(sets),
        memory=_memory(texts, setting, remarks),
        served=_served(texts, setting, remarks),
        remarks=tuple(remarks),
    )


def write_report(report: Report, folder: Path) -> dict[str, object]:
    """Keep a report as JSON.

    Returns:
        The JSON object.
    """
    record = asdict(report)
    write_atomic(folder / "report.json", json.dumps(record, indent=1).encode())
    return record


def draw(folder: Path, name: str = "report", chart: str = "chart") -> str | None:
    """Draw a report as NAME.png with the peers' environment.

    Args:
        name: of the report, without its suffix. chart: module of `peers` that draws it.

    Returns:
        Why there is no chart, in one line; None when there is.
    """
    environment = Environment(folder / "peers")
    reason = environment.install(CHART_REQUIREMENTS)
    if reason is not None:
        return reason
    source, target = (str((folder / f"{name}.{kind}").absolute()) for kind in ("json", "png"))
    done = subprocess.run(  # noqa: S603 - our own command line
        [str(environment.python), "-m", f"peers.{chart}", source, target],
        cwd=Path(__file__).parent,
        env=outside_environment(),
        capture_output=True,
        check=False,
        text=True,
    )
    return None if done.returncode == 0 else last_line(done.stderr)


def _texts(options: BenchOptions) -> Texts:
    count, hypotheses = options.lists_per_file, options.hypotheses
    if not options.files:
        return {"made up": lists.made_up_texts(count, hypotheses=hypotheses)}
    return {
        path.name.partition(".jsonl")[0]: lists.read_texts(path, hypotheses=hypotheses, count=count)
        for path in options.files
    }


def _memory(texts: Texts, setting: Setting, remarks: list[str]) -> dict[str, Memory]:
    """Of each GPT-2 at 4 bits and of the bundled model, with all threads."""
    tasks = {
        f"GPT-2 {name} {_SERVED_PACKING}": replace(
            gpt2_task(name, size, setting), variant=_SERVED_PACKING, backend="cpu"
        )
        for name, size in setting.options.sizes.items()
    }
    for name, some in [*texts.items()][:1]:
        tasks[BUNDLED] = bundled_task(name, some, setting)
    found = {}
    for name, task in tasks.items():
        try:
            found[name] = memory.measure(task)
        except WorkerError as error:
            remarks.append(f"memory of {name}: {error}")
    return found


def _served(texts: Texts, setting: Setting, remarks: list[str]) -> dict[str, Served]:
    """Each GPT-2 at 4 bits and the bundled model behind HTTP, on their first lists."""
    models: dict[str, tuple[Path, Sequence[tuple[str, ...]]]] = {
        f"GPT-2 {name} {_SERVED_PACKING}": gpt2_artifact(name, size, setting, _SERVED_PACKING)
        for name, size in setting.options.sizes.items()
    }
    for some in [*texts.values()][:1]:
        models[BUNDLED] = (bundled_path(BUNDLED), some)
    found = {}
    for name, (model, some) in models.items():
        log = setting.folder("logs") / f"server-{name.replace(' ', '-')}.log"
        try:
            found[name] = served.measure(model, some, _SERVED_PASSES, log)
        except WorkerError as error:
            remarks.append(f"served requests of {name}: {error}")
    return found
