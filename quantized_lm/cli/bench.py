"""`secondpass bench`: how fast this is here, beside what the machine can do and other systems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from quantized_lm.bench.benchmark import draw, write_report
from quantized_lm.bench.benchmark import run as run_benchmark
from quantized_lm.bench.gpu import STAGES, GpuOptions, rehearsal, tuned
from quantized_lm.bench.gpu import run as run_gpu
from quantized_lm.bench.gpu_tables import print_gpu_report
from quantized_lm.bench.options import BUNDLED, BenchOptions, quick_options
from quantized_lm.bench.tables import print_report
from quantized_lm.bench.weights import SIZES
from quantized_lm.cli.console import command, note, print_json, progress
from quantized_lm.errors import DataError

T = TypeVar("T")
# Fixed, so that a table sent to a file is not cut to the 80 columns of no terminal.
_TABLE_WIDTH = 146


@command
def run(  # noqa: PLR0913 - each is an option of the command
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only show that all of it works, in a minute; no peers.")
    ] = False,
    no_peers: Annotated[
        bool, typer.Option("--no-peers", help="Install and time no other systems.")
    ] = False,
    lists: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Real n-best lists for the bundled model, repeatable. [default: made-up lists]",
        ),
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Which models: some of s, b and en-small, with commas between.")
    ] = "s,b,en-small",
    rounds: Annotated[int, typer.Option(min=1, help="Passes over all systems.")] = 7,
    output: Annotated[
        Path, typer.Option(help="Folder for the report and for what other systems need.")
    ] = Path(".bench"),
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Check and time the kernels of the GPU instead.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="With --gpu: find tiles, and write tiles.json.")
    ] = False,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help=f"With --gpu: only this one of {', '.join(STAGES)}; repeatable. The report keeps "
            "what the others found last. [default: all]"
        ),
    ] = None,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="With --gpu: tiny, on the CPU; needs TRITON_INTERPRET=1."),
    ] = False,
) -> None:
    """Meter the machine, time the packed kernels, score whole n-best lists beside other systems.

    Sizes s and b are GPT-2s with random weights (27 M and 98 M parameters): every system gets the
    same weights and the same made-up 100-best lists, and its scores are compared with float32
    transformers first. en-small is the bundled model, from text to scores. Other systems are
    installed by pip into a folder of their own, which takes minutes the first time; one that
    cannot be installed or run is named with its reason. Close other programs: what shares the
    processor shows in the quartiles.

    Tables go to the terminal, and report.json and report.png into the output folder. The last line
    is the same JSON object.

    secondpass bench --quick

    secondpass bench --no-peers --sizes en-small --lists test.jsonl.gz

    secondpass bench --rounds 11 --output results

    With --gpu: kernels against their definitions, peaks, products, whole lists, and a model of 98 M
    behind the server, beside transformers where it is installed; then what was promised, asked and
    found. gpu.json is written after each stage, and gpu.png at the end.

    secondpass bench --gpu

    secondpass bench --gpu --tune --stage products
    """
    if gpu:
        _run_gpu(output, tuple(stage or ()), tunes=tune, rehearses=rehearse)
        return
    if tune or rehearse or stage:
        raise DataError("--tune, --stage and --rehearse go with --gpu; add it or leave them out")
    options = (
        quick_options(output)
        if quick
        else replace(
            _chosen(sizes, BenchOptions(output, peers=not no_peers)), files=tuple(lists or ())
        )
    )
    if not quick:
        options = replace(options, rounds=replace(options.rounds, rounds=rounds))
    report = run_benchmark(options, _track)
    print_report(report, Console(width=_TABLE_WIDTH, highlight=False, emoji=False, markup=False))
    record = write_report(report, output)
    if options.peers:
        reason = draw(output)
        note(f"{output / 'report.png'}: {reason or 'drawn'}")
    print_json(record)


def _run_gpu(output: Path, stages: tuple[str, ...], *, tunes: bool, rehearses: bool) -> None:
    options = replace(rehearsal(output) if rehearses else GpuOptions(output), stages=stages)
    report = run_gpu(tuned(options) if tunes and not rehearses else options, _track)
    print_gpu_report(
        report, Console(width=_TABLE_WIDTH, highlight=False, emoji=False, markup=False)
    )
    if not rehearses:
        reason = draw(output, name="gpu", chart="gpu_chart")
        note(f"{output / 'gpu.png'}: {reason or 'drawn'}")
    print_json(asdict(report))


def _chosen(sizes: str, options: BenchOptions) -> BenchOptions:
    names = [name.strip() for name in sizes.split(",") if name.strip()]
    known = (*SIZES, BUNDLED)
    odd = [name for name in names if name not in known]
    if odd or not names:
        raise DataError(f"sizes are {sizes!r}; need some of {', '.join(known)}")
    return replace(
        options,
        sizes={name: SIZES[name] for name in names if name in SIZES},
        bundled=BUNDLED in names,
    )


def _track(items: Sequence[T], description: str) -> Iterable[T]:
    with progress("steps") as bar:
        yield from bar.track(items, description=description)
