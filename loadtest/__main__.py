"""The command line: `python -m loadtest`, or `make loadtest`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.bodies import Ask, NbestList, kind_of_size, lattice_asks, list_asks, nbest_lists
from loadtest.charts import ChartsUnavailableError, draw
from loadtest.checks import ENGINE_SIZE
from loadtest.page import page_of
from loadtest.plan import FULL, QUICK, Durations, Planner
from loadtest.report import Report, machine, make_report
from loadtest.run import Run, Runner
from loadtest.server import Address, loopback, serving
from loadtest.tables import tables_of
from quantized_lm.cli.console import command, note, out, print_json

MIX = {1: 0.2, 10: 0.6, ENGINE_SIZE: 0.2}  # hypotheses: share of requests
LATTICE_SHARE = 0.1
_WIDTH = 120  # of the tables, where the output is no terminal
_REFRESHES_PER_S = 4.0  # more would take time from the generator


@command
def main(  # noqa: PLR0913 - one argument per option
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A trial of 40 seconds; its numbers mean little.")
    ] = False,
    hypotheses: Annotated[
        int, typer.Option(min=1, max=1000, help="In a list of the standard request.")
    ] = 10,
    deadline_ms: Annotated[
        float, typer.Option(min=1.0, max=30_000.0, help="Of every request.")
    ] = 1000.0,
    threads: Annotated[int, typer.Option(min=0, help="Of the server's engine; 0: every core.")] = 1,
    lists: Annotated[
        list[Path] | None,
        typer.Option(help="File of n-best lists, repeatable; else lists are made up."),
    ] = None,
    lattices: Annotated[
        Path | None, typer.Option(metavar="DIR", help="HTK lattices to put into the mix.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model folder. [default: en-small]")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A server that runs already, on a loopback address; its "
            "memory is not seen, so that claim never holds.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed plans the same load.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write report.json and report.html there."),
    ] = None,
) -> None:
    """Load a server of this machine with planned arrivals, and say whether it stood it.

    A server is started on a free loopback port, unless --target names one. Steps: idle latency,
    capacity, 70 % of it, 200 % of it and recovery, bursts, a ramp, mixed sizes, and clients that
    are slow or hang up. Ends with a table of claims, a line of JSON, and exit code 1 if one of the
    claims does not hold.

    The latency of a request counts from when it was planned to arrive, whether or not the server
    was able to take it then. Leave the machine alone meanwhile: if other programs took a quarter of
    a core, or the generator itself was late, the run says that it is invalid.

    make loadtest
    python -m loadtest --quick --out /tmp/report
    python -m loadtest --lists nbest.jsonl.gz --lattices lattices/ --deadline-ms 500
    """
    before, address = machine(), None if target is None else loopback(target)
    longest = nbest_lists(lists or [], max(hypotheses, *MIX), seed)
    planner = _planner(QUICK if quick else FULL, hypotheses, longest, lattices, seed)
    settings = {
        "engine threads": str(threads) if target is None else "unknown",
        "deadline": f"{deadline_ms:g} ms",
        "standard request": planner.asks[0].kind,
        "lists": _origin(lists or [], longest),
        "server": target or f"own, {model or 'bundled model'}",
    }
    with _server(address, model, threads) as found:
        run = _run(found, planner, deadline_ms)
    report = make_report(run, planner.asks[0].kind, machine=before, settings=settings)
    terminal = out()
    terminal.width = max(terminal.width, _WIDTH)
    for table in tables_of(report):
        terminal.print(table)
    if folder is not None:
        _write(report, folder)
    if not report.is_valid:
        unmet = "; ".join(one.claim for one in report.conditions if not one.is_passed)
        note(f"invalid, the other checks mean nothing: {unmet}")
    print_json(report.short())
    raise typer.Exit(0 if report.is_passed else 1)


def _planner(
    durations: Durations,
    hypotheses: int,
    longest: Sequence[NbestList],
    lattices: Path | None,
    seed: int,
) -> Planner:
    def asks(size: int) -> tuple[Ask, ...]:
        return list_asks(longest, size, seed)

    mix = [(asks(size), share) for size, share in MIX.items()]
    standard = next(
        (sized for sized, _ in mix if sized[0].kind == kind_of_size(hypotheses)), None
    ) or asks(hypotheses)
    if lattices is not None:
        mix.append((lattice_asks(lattices), LATTICE_SHARE))
    return Planner(durations, standard, mix, seed)


def _origin(files: Sequence[Path], longest: Sequence[NbestList]) -> str:
    """Where the lists of a run are from."""
    if not files:
        return "made up"
    most = max(map(len, longest))
    return f"{', '.join(path.name for path in files)}; made up above {most} hypotheses"


@contextlib.contextmanager
def _server(address: Address | None, model: Path | None, threads: int) -> Iterator[Address]:
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        note("starting the server")
        try:
            with serving(model, {"threads": str(threads)}, log) as started:
                yield started
        except Exception:
            note("".join(log.read_text("utf-8", "replace").splitlines(keepends=True)[-20:]))
            raise


def _run(address: Address, planner: Planner, deadline_ms: float) -> Run:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=_REFRESHES_PER_S,
        disable=not console.is_terminal,
    ) as bars:

        def begin(name: str, duration_s: float) -> Callable[[float], None]:
            task = bars.add_task(name, total=duration_s or None)

            def on_progress(over_s: float) -> None:
                bars.update(task, completed=min(over_s, duration_s))

            return on_progress

        return uvloop.run(Runner(address, planner, deadline_ms, begin).run())


def _write(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        pictures = draw(report)
    except ChartsUnavailableError as error:
        note(str(error))
        pictures = {}
    page = page_of(report, pictures)
    (folder / "report.html").write_text(page, encoding="utf-8")
    content = json.dumps(report.as_json(), ensure_ascii=False, indent=1)
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")
    note(f"wrote {folder / 'report.html'} and report.json")


if __name__ == "__main__":
    typer.run(main)
