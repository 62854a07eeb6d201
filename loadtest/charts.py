"""Pictures of a report, by matplotlib, which is an extra. Knows no HTML."""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Sequence
from typing import Any

from loadtest.measures import PERCENTILES
from loadtest.report import Report, Span
from loadtest.run import CAPACITY, OVERLOAD, RAMP, STEADY
from quantized_lm.errors import SecondpassError

_DPI = 110
_SHOWN = ("p50", "p99")


class ChartsUnavailableError(SecondpassError):
    """Matplotlib is not installed."""


def draw(report: Report) -> dict[str, str]:
    """Caption -> PNG as a data: URL.

    Raises:
        ChartsUnavailableError: matplotlib is not installed.
    """
    try:
        new_figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise ChartsUnavailableError(
            "no pictures: matplotlib is not installed; pip install 'secondpass[reproduce]'"
        ) from None
    captions = {
        "Latency over time": _over_time,
        "Latency by percentile": _percentiles,
        "Goodput against offered load": _goodput,
    }
    figures = {}
    for caption, paint in captions.items():
        figure = new_figure(figsize=(11, 4), layout="constrained")
        paint(figure, report)
        figures[caption] = _as_url(figure)
    return figures


def _over_time(figure: Any, report: Report) -> None:
    axes = figure.subplots(1, len(report.spans), squeeze=False)[0]
    for axis, (name, spans) in zip(axes, report.spans.items(), strict=True):
        for percentile in _SHOWN:
            seen = [span for span in spans if percentile in span.latency_ms]
            axis.plot(
                [span.at_s for span in seen],
                [span.latency_ms[percentile] for span in seen],
                label=percentile,
            )
        axis.set_yscale("log")
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlabel("planned arrival, s")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("latency, ms")
    axes[0].legend()


def _percentiles(figure: Any, report: Report) -> None:
    axis = figure.subplots()
    names = list(PERCENTILES)
    for summary in report.summaries:
        if summary.latency_ms and not summary.name.startswith(CAPACITY):
            values = [summary.latency_ms[name] for name in names]
            axis.plot(names, values, marker=".", label=summary.name)
    axis.set_yscale("log")
    axis.set_ylabel("latency, ms")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)


def _goodput(figure: Any, report: Report) -> None:
    axis = figure.subplots()
    spans: Sequence[Span] = report.spans[RAMP]
    axis.scatter(
        [span.offered_per_s for span in spans],
        [span.goodput_per_s for span in spans],
        s=14,
        label=RAMP,
    )
    for one in report.summaries:
        if one.name in (STEADY, OVERLOAD):
            axis.scatter([one.offered_per_s], [one.goodput_per_s], s=60, label=one.name)
    axis.axhline(report.capacity_per_s, linestyle="--", linewidth=1, label=CAPACITY)
    axis.axline((0, 0), slope=1, linewidth=0.5, color="gray")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("offered, requests/s")
    axis.set_ylabel("good answers in time, /s")
    axis.grid(alpha=0.3)
    axis.legend()


def _as_url(figure: Any) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=_DPI, format="png")
    return "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode("ascii")
