"""A report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from loadtest.checks import Check
from loadtest.measures import PERCENTILES, STAGES, Summary
from loadtest.report import METHOD, Report

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;
color:#1c1c1c;background:#fff}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd;font-size:.9rem}
th:first-child,td:first-child{text-align:left}img{max-width:100%}
.pass{color:#166534}.fail{color:#b91c1c;font-weight:700}small{color:#555}
"""


def page_of(report: Report, pictures: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        pictures: caption -> URL.
    """
    verdict = "pass" if report.is_passed else "fail"
    parts = [
        f"<h1>Load test: <span class={verdict}>{verdict}</span></h1>",
        f"<p>Capacity {report.capacity_per_s:.1f} requests/s.</p>",
        _checks([*report.conditions, *report.checks]),
        *(
            f"<h2>{html.escape(caption)}</h2><img alt='{html.escape(caption)}' src='{url}'>"
            for caption, url in pictures.items()
        ),
        "<h2>Latency of good answers, ms</h2>",
        _latencies(report.summaries),
        "<h2>Stages of good answers, ms: p50 / p99</h2>",
        _stages(report.summaries),
        "<h2>Outcomes</h2>",
        _outcomes(report.summaries),
        "<h2>Machine and settings</h2>",
        _table(("", ""), [*report.machine.items(), *report.settings.items()]),
        *(f"<p><small>{html.escape(line)}</small></p>" for line in METHOD),
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><title>Load test</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _checks(checks: Sequence[Check]) -> str:
    rows = [
        f"<tr><td>{html.escape(one.claim)}<td>{html.escape(one.wanted)}<td>{html.escape(one.found)}"
        f"<td class={'pass' if one.is_passed else 'fail'}>{'pass' if one.is_passed else 'FAIL'}"
        for one in checks
    ]
    return f"<table><tr><th>Claim<th>Wanted<th>Found<th>{''.join(rows)}</table>"


def _latencies(summaries: Sequence[Summary]) -> str:
    rows = []
    for one in summaries:
        rates = (f"{one.offered_per_s:.1f}", f"{one.goodput_per_s:.1f}")
        rows.append((one.name, *rates, *_numbers(one.good_latency_ms)))
        if len(one.by_kind_ms) > 1:
            rows += [
                (f"{one.name}, {kind}", "", "", *_numbers(found))
                for kind, found in one.by_kind_ms.items()
            ]
    return _table(("Step", "Offered/s", "Good/s", *PERCENTILES), rows)


def _stages(summaries: Sequence[Summary]) -> str:
    rows = [
        (
            one.name,
            *(
                f"{_number(found, 'p50')} / {_number(found, 'p99')}"
                for found in (one.stages_ms[stage] for stage in STAGES)
            ),
        )
        for one in summaries
    ]
    return _table(("Step", *STAGES), rows)


def _outcomes(summaries: Sequence[Summary]) -> str:
    rows = [
        (
            one.name,
            str(one.requests),
            str(one.late),
            str(one.unanswered),
            f"{one.lists_per_pass:.2f}",
            _number(one.sent_late_ms, "p99"),
            f"{one.generator_cores:.2f}",
            f"{one.server_cores:.2f}",
            f"{one.other_cores:.2f}",
            f"{one.rss_mib:.0f}",
            ", ".join(f"{count} {name}" for name, count in one.outcomes.items()),
        )
        for one in summaries
    ]
    titles = ("Step", "Requests", "Late", "Unanswered", "Lists per pass", "Sent late, p99 ms")
    more = ("Generator's cores", "Server's cores", "Others' cores", "Server MiB", "By outcome")
    return _table((*titles, *more), rows)


def _numbers(found: Mapping[str, float]) -> list[str]:
    return [_number(found, name) for name in PERCENTILES]


def _number(found: Mapping[str, float], name: str) -> str:
    return f"{found[name]:.2f}" if name in found else ""


def _table(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(title)}" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) for cells in rows)
    return f"<table><tr>{head}{body}</table>"
