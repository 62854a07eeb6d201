"""A report on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.checks import Check
from loadtest.measures import PERCENTILES, STAGES, Summary
from loadtest.report import Report

PASS, FAIL = Text("pass", style="green"), Text("FAIL", style="bold red")


def tables_of(report: Report) -> Iterator[RenderableType]:
    """Steps, stages, outcomes, who took the machine, and at the end what passed."""
    yield _steps(report.summaries)
    yield _stages(report.summaries)
    yield _outcomes(report.summaries)
    yield _processes(report.summaries)
    yield f"capacity {report.capacity_per_s:.1f} requests/s"
    yield checks_table([*report.conditions, *report.checks])


def checks_table(checks: Sequence[Check]) -> Table:
    """Claim by claim."""
    table = Table(title="checks", title_justify="left")
    for title in ("claim", "wanted", "found", ""):
        table.add_column(title)
    for check in checks:
        table.add_row(check.claim, check.wanted, check.found, PASS if check.is_passed else FAIL)
    return table


def _steps(summaries: Sequence[Summary]) -> Table:
    table = _table(
        "latency of good answers in ms, from the planned arrival", "step", "offered/s", "good/s"
    )
    for name in PERCENTILES:
        table.add_column(name, justify="right")
    for one in summaries:
        table.add_row(
            one.name,
            f"{one.offered_per_s:.1f}",
            f"{one.goodput_per_s:.1f}",
            *(_number(one.good_latency_ms.get(name)) for name in PERCENTILES),
        )
        if len(one.by_kind_ms) > 1:
            for kind, found in one.by_kind_ms.items():
                cells = (_number(found.get(name)) for name in PERCENTILES)
                table.add_row(f"  {kind}", "", "", *cells)
    return table


def _stages(summaries: Sequence[Summary]) -> Table:
    table = _table("stages of good answers in ms, p50 / p99", "step", *STAGES)
    for one in summaries:
        cells = [one.stages_ms.get(stage, {}) for stage in STAGES]
        table.add_row(
            one.name,
            *(f"{_number(cell.get('p50'))} / {_number(cell.get('p99'))}" for cell in cells),
        )
    return table


def _outcomes(summaries: Sequence[Summary]) -> Table:
    table = _table("outcomes", "step", "requests", "late", "unanswered", "lists/pass")
    table.add_column("by outcome")
    for one in summaries:
        outcomes = ", ".join(f"{count} {name}" for name, count in one.outcomes.items())
        counts = (str(one.requests), str(one.late), str(one.unanswered))
        table.add_row(one.name, *counts, f"{one.lists_per_pass:.2f}", outcomes)
    return table


def _processes(summaries: Sequence[Summary]) -> Table:
    table = _table(
        "generator, server and other programs",
        "step",
        "sent late p50 ms",
        "p99 ms",
        "max ms",
        "its cores",
        "server's cores",
        "others'",
        "server MiB",
    )
    for one in summaries:
        late = (_number(one.sent_late_ms.get(name)) for name in ("p50", "p99", "max"))
        table.add_row(
            one.name,
            *(late if one.is_open else ("", "", "")),
            f"{one.generator_cores:.2f}",
            f"{one.server_cores:.2f}",
            f"{one.other_cores:.2f}",
            f"{one.rss_mib:.0f}",
        )
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for other in others:
        table.add_column(other, justify="right")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
