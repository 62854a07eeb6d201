"""A report as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from quantized_lm.bench.gemms import GemmTime
from quantized_lm.bench.report import ListSet, Report, SystemRow
from quantized_lm.bench.served import Served

_MIB = 1 << 20


def print_report(report: Report, console: Console) -> None:
    """Every table, then how it was measured and what went wrong."""
    console.print(f"{report.machine}; {report.threads} threads unless said otherwise")
    console.print(_peaks(report))
    console.print(_summaries(report))
    console.print(_gemms(report.gemms))
    for one in report.list_sets:
        console.print(_systems(one))
    if report.memory:
        console.print(_memory(report))
    for name, of_model in report.served.items():
        console.print(_served(name, of_model))
    for line in (*report.method, *report.remarks):
        console.print(line)


def _table(title: str, headings: Sequence[str]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _peaks(report: Report) -> Table:
    counts = list(report.peaks[0].per_second) if report.peaks else []
    headings = ["this machine at most", "billions of", *(f"{n} threads, /s" for n in counts)]
    table = _table("peaks", headings)
    for peak in report.peaks:
        values = (f"{peak.per_second[count] / 1e9:.0f}" for count in counts)
        table.add_row(peak.name, f"{peak.unit}s", *values)
    return table


def _summaries(report: Report) -> Table:
    title = (
        "matrix products, 1 thread: geometric means over shapes, billions of operations a second"
    )
    table = _table(title, ("kernel", "M >= 32", "% of peak", "M = 1", "% of peak"))
    for row in report.gemm_summaries:
        table.add_row(
            row.kernel,
            f"{row.batch:.0f}",
            _percent(row.batch_share, 0),
            f"{row.single:.0f}",
            _percent(row.single_share, 0),
        )
    table.caption = "peak: that of the best int8 products; a look-up may do more operations"
    return table


def _gemms(timings: Iterable[GemmTime]) -> Table:
    cells: dict[tuple[int, int, str], dict[int, float]] = {}
    for timing in timings:
        cells.setdefault((timing.K, timing.N, timing.kernel), {})[timing.M] = timing.gops
    rows = sorted({M for row in cells.values() for M in row})
    table = _table(
        "matrix products, 1 thread, billions of operations a second",
        ("kernel", "K x N", *(f"M={M}" for M in rows)),
    )
    shape = None
    for (K, N, kernel), row in cells.items():  # noqa: N806 - the names of the field
        if shape not in {None, (K, N)}:
            table.add_section()
        shape = (K, N)
        table.add_row(kernel, f"{K} x {N}", *(f"{row[M]:.0f}" for M in rows))
    return table


def _systems(one: ListSet) -> Table:
    shape = one.shape
    title = (
        f"{one.title}: {len(one.ratios)} lists, means {shape.contexts:.0f} contexts, "
        f"{shape.nodes:.0f} tree nodes, ratio {min(one.ratios):.1f} to {max(one.ratios):.1f}"
    )
    headings = ("system", "ms a list", "quartiles", "x float32", "1 thread", "speed-up")
    more = ("limit %", "1 thread %", "MiB", "diff %", "noise %", "same w. %", "processes, ms")
    table = _table(title, (*headings, *more))
    working = [row for row in one.rows if row.failure is None]
    for row in sorted(working, key=lambda row: -row.median_ms):
        table.add_row(
            row.name,
            f"{row.median_ms:.1f}",
            f"{row.first_quartile_ms:.1f}-{row.third_quartile_ms:.1f}",
            _number(row.times_float32, 2),
            _number(row.one_thread_ms, 1),
            _number(row.over_one_thread, 2),
            _percent(row.peak_share, 0),
            _percent(row.one_thread_peak_share, 0),
            f"{row.model_bytes / _MIB:.1f}",
            _percent(row.max_difference, 3),
            _percent(row.ranking_noise, 1),
            _percent(row.same_weights_difference, 3),
            _processes(row),
            style="bold" if row.is_own else None,
        )
    failed = [f"{row.name} did not run: {row.failure}" for row in one.rows if row.failure]
    table.caption = "\n".join(failed)
    return table


def _processes(row: SystemRow) -> str:
    """The fastest and the slowest process: far apart, there are two ways for a run to go."""
    if not row.processes_ms:
        return "-"
    return f"{min(row.processes_ms):.1f}-{max(row.processes_ms):.1f}"


def _memory(report: Report) -> Table:
    title = "resident memory, MiB, above Python with torch imported"
    headings = ("model", "packed file", "loaded", "after scoring", "beyond the file", "activations")
    table = _table(title, headings)
    for name, one in report.memory.items():
        sizes = (
            one.packed_bytes,
            one.loaded_bytes,
            one.scored_bytes,
            one.beyond_packed_bytes,
            one.activation_bytes,
        )
        table.add_row(name, *(f"{size / _MIB:.1f}" for size in sizes))
    return table


def _served(name: str, one: Served) -> Table:
    title = f"a served request of {name}, medians: one list of {one.hypotheses:.0f} hypotheses"
    table = _table(title, ("part", "ms", "%"))
    for part, part_ms in (
        ("forward", one.forward_ms),
        ("front end: tokens, tree, combination, reply", one.front_end_ms),
        ("HTTP and client", one.http_ms),
        ("all, as the client sees it", one.wall_ms),
    ):
        table.add_row(part, f"{part_ms:.2f}", _percent(part_ms / one.wall_ms, 1))
    skipped = "not said" if one.skipped_nodes is None else f"{one.skipped_nodes:.0f}"
    table.add_row(
        f"with n_best 1, without HTTP; nodes not run: {skipped} of {one.tree_nodes:.0f}",
        f"{one.best_only_ms:.2f}",
        "",
    )
    return table


def _percent(share: float | None, digits: int) -> str:
    return _number(None if share is None else 100 * share, digits)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
