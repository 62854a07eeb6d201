"""The report of a GPU as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from quantized_lm.bench.gpu import GpuReport
from quantized_lm.bench.gpu_lists import ListTime
from quantized_lm.bench.gpu_products import GpuTime

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
        console.print(_times(title, [one for one in report.times if one.what == kind]))
    console.print(_lists(report.lists))
    if report.served is not None:
        console.print(
            f"served: {report.served.wall_ms:.2f} ms a request of {report.served.hypotheses:.0f} "
            f"hypotheses, {report.served.forward_ms:.2f} ms of it the network"
        )
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
        "model", "system", "nodes", "p50, ms", "p99, ms", "off the CPU by", title="Whole lists"
    )
    for one in times:
        off = "" if one.difference is None else f"{one.difference:.1e}"
        if one.failure is None:
            numbers = (f"{one.median_ms:.2f}", f"{one.slowest_ms:.2f}", off)
        else:
            numbers = (one.failure, "", "")
        table.add_row(one.model, one.system, f"{one.nodes:.0f}", *numbers)
    return table
