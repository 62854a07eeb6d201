"""A report as a picture: `python -m peers.chart report.json report.png`.

One panel for each set of lists, a bar for each system, and one for the matrix products.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

mpl.use("Agg")
_OWN, _OTHER = "#c2410c", "#64748b"
_ROW_INCHES = 0.24
_WIDTH_INCHES = 9.0


def main() -> None:
    """Draw."""
    source, target = map(Path, sys.argv[1:])
    report = json.loads(source.read_text(encoding="utf-8"))
    panels = [_bars_of(one) for one in report["list_sets"]]
    panels.append(_gemm_bars(report))
    heights = [len(bars) + 3 for _, _, bars in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(_WIDTH_INCHES, _ROW_INCHES * sum(heights)),
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
        squeeze=False,
    )
    for axis, (title, unit, bars) in zip(axes[:, 0], panels, strict=True):
        _draw(axis, title, unit, bars)
    figure.suptitle(f"{report['machine']}; {report['threads']} threads", fontsize=8)
    figure.savefig(target, dpi=130)


def _bars_of(one: dict[str, Any]) -> tuple[str, str, list[dict[str, Any]]]:
    """Lists a second of each system, fastest first; whiskers are quartiles over rounds."""
    rows = [row for row in one["rows"] if row["failure"] is None]
    bars = [
        {
            "name": row["name"],
            "label": f"{row['median_ms']:.1f} ms",
            "value": 1e3 / row["median_ms"],
            "low": 1e3 / row["third_quartile_ms"],
            "high": 1e3 / row["first_quartile_ms"],
            "is_own": row["is_own"],
        }
        for row in sorted(rows, key=lambda row: row["median_ms"])
    ]
    return one["title"], "lists a second; beside the bars the time of a list", bars


def _gemm_bars(report: dict[str, Any]) -> tuple[str, str, list[dict[str, Any]]]:
    bars = [
        {
            "name": row["kernel"],
            "label": f"{row['batch']:.0f}",
            "value": row["batch"],
            "low": row["batch"],
            "high": row["batch"],
            "is_own": row["kernel"].startswith("ours"),
        }
        for row in sorted(report["gemm_summaries"], key=lambda row: -row["batch"])
    ]
    return "matrix products, M >= 32, 1 thread", "billions of operations a second", bars


def _draw(axis: Any, title: str, unit: str, bars: list[dict[str, Any]]) -> None:
    places = range(len(bars))
    low = [bar["value"] - bar["low"] for bar in bars]
    high = [bar["high"] - bar["value"] for bar in bars]
    axis.barh(
        places,
        [bar["value"] for bar in bars],
        xerr=[low, high],
        color=[_OWN if bar["is_own"] else _OTHER for bar in bars],
        error_kw={"linewidth": 0.8},
    )
    for place, bar in zip(places, bars, strict=True):
        axis.text(bar["high"], place, f"  {bar['label']}", va="center", fontsize=7)
    axis.set_yticks(places, [bar["name"] for bar in bars], fontsize=7)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel(unit, fontsize=7)
    axis.set_title(title, fontsize=8, loc="left")
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
