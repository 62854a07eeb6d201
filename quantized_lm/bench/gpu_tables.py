"""The report of a GPU as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from quantized_lm.bench.gpu_lists import ListTime
from quantized_lm.bench.gpu_products import GpuTime
from quantized_lm.bench.gpu_report import GpuReport, Target
from quantized_lm.bench.gpu_served import ServiceReport

_TITLES = {
    "peak": "Peaks (GB/s of a copy, TFLOP/s of products)",
    "product": "Matrix products, M x N x K (TFLOP/s)",
    "output": "Output layers, M x N x K (TFLOP/s)",
    "attention": "Attention over paths, nodes",
}


def print_gpu_report(report: GpuReport, console: Console) -> None:
    """All tables."""
    what = "rehearsal: times mean nothing" if report.is_rehearsal else report.date
    console.print(f"{report.device}; {what}; {report.comparisons} comparisons equal")
    for kind, title in _TITLES.items():
        of_kind = [one for one in (*report.peaks, *report.times) if one.what == kind]
        console.print(_times(title, of_kind))
    console.print(_lists(report.lists))
    if report.service is not None:
        console.print(_service(report.service))
    console.print(_targets(report.targets))
    for remark in report.remarks:
        console.print(remark)


def _times(title: str, times: Sequence[GpuTime]) -> Table:
    table = Table("size", "system", "warm, us", "cold, us", "rate", title=title)
    for one in times:
        size = " x ".join(map(str, one.size))
        if one.failure is None:
            numbers = (f"{one.warm_us:.1f}", f"{one.cold_us:.1f}", f"{one.rate:.1f}")
        else:
            numbers = (one.failure, "", "")
        table.add_row(size, one.system, *numbers)
    return table


def _lists(times: Sequence[ListTime]) -> Table:
    table = Table(
        *("model", "system", "nodes", "p50, ms", "p99, ms", "device, ms", "off the CPU by"),
        title="Whole lists",
    )
    for one in times:
        off = "" if one.difference is None else f"{one.difference:.1e}"
        if one.failure is None:
            device = "" if one.device_ms is None else f"{one.device_ms:.3f}"
            numbers = (f"{one.median_ms:.2f}", f"{one.slowest_ms:.2f}", device, off)
        else:
            numbers = (one.failure, "", "", "")
        table.add_row(one.model, one.system, f"{one.nodes:.0f}", *numbers)
    return table


def _service(report: ServiceReport) -> Table:
    title = (
        f"Service: {report.model}, {report.parameters / 1e6:.0f} M parameters, {report.backend}, "
        f"{report.residency}; {report.tree_nodes:.0f} nodes a request; loaded in "
        f"{report.load_s:.2f} s, first request {report.first_ms:.1f} ms"
    )
    table = Table("load", "answered", "refused", "stage", "p50, ms", "p99, ms", title=title)
    for one in report.times:
        counts = (one.load, str(one.answered), str(one.refused))
        for stage in one.stages:
            table.add_row(*counts, stage.stage, f"{stage.median_ms:.2f}", f"{stage.slowest_ms:.2f}")
            counts = ("", "", "")
    return table


def _targets(targets: Sequence[Target]) -> Table:
    table = Table("what", "asked", "found", "holds", title="What was promised of an H200")
    for one in targets:
        found = "not measured" if one.found is None else f"{one.found:.3g}"
        table.add_row(one.what, one.asked, found, "yes" if one.holds else "no")
    return table
