"""Pictures of a report, by matplotlib, which is an extra.

size-and-perplexity.png   test perplexity of every cell against its bytes
size-and-LISTS-wer.png    word error rate of every cell against its bytes, for each set of lists
learning.png              perplexity of the float models on dev against the tokens they had seen,
                          and how they change word errors, where weights were kept on the way
bits.png                  bits of every matrix, a panel for each allocation
sensitivity.png           cost of every format of every matrix, a panel for each metric
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import SecondpassError
from quantized_lm.pipeline.reproduce.report import (
    ChosenFormats,
    LearningCurve,
    MeasuredCosts,
    Report,
)
from quantized_lm.pipeline.reproduce.results import CellResult, Numbers, by_architecture

_DPI = 130
_SMALL = 7
_CEILING = 1.5
# Of a label, in shares of a panel.
_LETTER_WIDTH = 0.0085
_LINE_HEIGHT = 0.019
_LABEL_GAP = 0.02


@dataclass(frozen=True)
class _Measure:
    """What is drawn against bytes.

    Attributes:
        is_ratio: on a logarithmic axis, where _CEILING times the best is far enough to look.
    """

    label: str
    value_of: Callable[[Numbers], float]
    is_ratio: bool


@dataclass(frozen=True)
class _Point:
    name: str
    method: str
    size_bytes: int
    value: float


class PlotsUnavailableError(SecondpassError):
    """Matplotlib is not installed."""


def draw(report: Report, out: Path) -> list[str]:
    """Draw what there is to draw; returns the names of the files.

    Raises:
        PlotsUnavailableError: matplotlib is not installed.
    """
    try:
        new_figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise PlotsUnavailableError(
            "no pictures: matplotlib is not installed; pip install 'secondpass[reproduce]'"
        ) from None
    figures: dict[str, Any] = {}
    if any(cell.numbers for cell in report.cells):
        figures["size-and-perplexity.png"] = _sizes(new_figure, report, _PERPLEXITY)
        for place, lists in enumerate(report.lists):
            rate = partial(_word_error_rate, place)
            measure = _Measure(f"WER %, {lists.title}, held out", rate, is_ratio=False)
            figures[f"size-and-{lists.name}-wer.png"] = _sizes(new_figure, report, measure)
    if any(len(curve.tokens) > 1 for curve in report.learning):
        figures["learning.png"] = _learning(new_figure, report)
    if report.allocations:
        figures["bits.png"] = _panels(new_figure, report.allocations, _bits, height=1.9)
    if report.sensitivities:
        figures["sensitivity.png"] = _panels(new_figure, report.sensitivities, _costs, height=2.6)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=_DPI)
    return list(figures)


def _learning(new_figure: Any, report: Report) -> Any:
    errors = [curve for curve in report.learning if len(curve.kept_tokens) > 1]
    columns = 2 if errors else 1
    figure = new_figure(figsize=(6.5 * columns, 4.0), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    _perplexity_curves(axes[0], report)
    if errors:
        _word_error_curves(axes[1], report, errors)
    for axis in axes:
        axis.set_xlabel("tokens seen")
        axis.grid(alpha=0.3)
    return figure


def _perplexity_curves(axis: Any, report: Report) -> None:
    for curve in report.learning:
        axis.plot(curve.tokens, curve.perplexity, marker=".", label=curve.architecture)
    best = min(min(curve.perplexity) for curve in report.learning)
    axis.set_ylim(0.98 * best, 2.0 * best)  # the first measurements are far above
    axis.set_ylabel("perplexity per token, dev")
    axis.set_title(f"{report.title}, {report.size}: float models", fontsize=9, loc="left")
    axis.legend(fontsize=_SMALL)


def _word_error_curves(axis: Any, report: Report, curves: Sequence[LearningCurve]) -> None:
    titles = {lists.name: lists.title for lists in report.lists}
    for curve in curves:
        for name, rates in curve.wer.items():
            first = curve.first_pass_wer[name]
            percent = [100 * (rate / first - 1) for rate in rates]
            label = f"{curve.architecture}: {titles[name]}"
            axis.plot(curve.kept_tokens, percent, marker=".", label=label)
    axis.set_ylabel("WER to the decoder's first pass, %")
    axis.legend(fontsize=_SMALL, loc="upper left", bbox_to_anchor=(1, 1))  # it can be long


def _sizes(new_figure: Any, report: Report, measure: _Measure) -> Any:
    measured = [cell for cell in report.cells if cell.numbers is not None]
    columns = by_architecture(measured)
    methods = list(dict.fromkeys(_point(cell, measure).method for cell in measured))
    colors = {method: f"C{number}" for number, method in enumerate(methods)}
    figure = new_figure(figsize=(6.5 * len(columns), 5.5), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)
    for axis, (architecture, cells) in zip(axes[0], columns.items(), strict=True):
        points = [_point(cell, measure) for cell in cells]
        points.sort(key=lambda point: point.value)
        _size_panel(axis, points, colors, is_ratio=measure.is_ratio)
        axis.set_title(f"{report.title}, {report.size}: {architecture}", fontsize=9, loc="left")
    axes[0, 0].set_ylabel(measure.label)
    return figure


def _point(cell: CellResult, measure: _Measure) -> _Point:
    assert cell.numbers is not None
    value = measure.value_of(cell.numbers)
    return _Point(cell.row, cell.method or "float32", cell.numbers.size_bytes, value)


def _perplexity(numbers: Numbers) -> float:
    return numbers.test.token_perplexity


def _word_error_rate(place: int, numbers: Numbers) -> float:
    return 100 * numbers.lists[place].held_out.wer


_PERPLEXITY = _Measure("perplexity per token, test", _perplexity, is_ratio=True)


def _size_panel(
    axis: Any, points: Sequence[_Point], colors: Mapping[str, str], *, is_ratio: bool
) -> None:
    """Values beyond the ceiling are drawn at the upper edge, with their value."""
    best = min(point.value for point in points)
    ceiling = _CEILING * best if is_ratio else math.inf
    shown = np.array([min(point.value, ceiling) for point in points])
    size = np.array([point.size_bytes for point in points])
    for method, color in colors.items():
        chosen = [point.method == method for point in points]
        axis.scatter(size[chosen], shown[chosen], s=18, color=color, label=method, zorder=3)
    axis.set_xscale("log")
    axis.set_xlim(size.min() / 1.3, size.max() * 2.5)
    if is_ratio:
        axis.set_yscale("log")
        axis.set_ylim(best / 1.08, ceiling * 1.05)
        ticks = np.round(np.geomspace(best, ceiling, 7))
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_yticks([], minor=True)
    names = [
        point.name + (f" ({point.value:.0f})" if point.value > ceiling else "") for point in points
    ]
    _label(axis, size, shown, names)
    axis.set_xlabel("bytes of weights, everything included")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=_SMALL)


def _label(axis: Any, x: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> None:
    """Names beside their points."""
    points = np.column_stack([x, y]).astype(np.float64)
    places = axis.transAxes.inverted().transform(axis.transData.transform(points))
    for name, point, place in zip(names, places, label_places(places, names), strict=True):
        axis.annotate(
            name,
            point,
            place,
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=5,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.3, "alpha": 0.6},
        )


def label_places(points: NDArray[np.float64], names: Sequence[str]) -> list[tuple[float, float]]:
    """Where names stand so that none covers another: beside their points, moved up or down.

    Args:
        points: (n, 2), shares of a panel.
    """
    taken: list[tuple[float, float, float]] = []
    for name, (left, middle) in zip(names, points.tolist(), strict=True):
        end = min(left + _LABEL_GAP + _LETTER_WIDTH * len(name), 1.0)
        start = end - _LETTER_WIDTH * len(name)
        steps = (step // 2 * (-1) ** step for step in itertools.count(1))  # 0, 1, -1, 2, -2, ...
        height = next(
            height
            for height in (middle + _LINE_HEIGHT * step for step in steps)
            if height > 0
            and all(
                abs(height - other) > 0.99 * _LINE_HEIGHT or start > last or end < first
                for other, first, last in taken
            )
        )
        taken.append((height, start, end))
    return [(start, height) for height, start, _ in taken]


def _bits(axis: Any, chosen: ChosenFormats) -> None:
    places = range(len(chosen.bits))
    bars = axis.bar(places, list(chosen.bits.values()), color="#c2410c")
    axis.bar_label(bars, list(chosen.formats.values()), fontsize=5)
    axis.set_ylabel("bits", fontsize=_SMALL)
    axis.set_ylim(0, 1.2 * max(chosen.bits.values()))
    axis.tick_params(axis="y", labelsize=_SMALL)
    axis.set_xticks(places, list(chosen.bits), rotation=90, fontsize=5)
    axis.set_title(
        f"{chosen.architecture}, {chosen.metric}, {chosen.compression:.2f}x before entropy coding",
        fontsize=_SMALL,
        loc="left",
    )


def _costs(axis: Any, measured: MeasuredCosts) -> None:
    costs = np.array([list(row.values()) for row in measured.costs.values()]).T
    shown = np.full(costs.shape, np.nan)
    np.log10(costs, out=shown, where=costs > 0)
    image = axis.imshow(shown, aspect="auto", cmap="viridis")
    choices = list(next(iter(measured.costs.values())))
    axis.set_yticks(range(len(choices)), choices, fontsize=_SMALL)
    axis.set_xticks(range(len(measured.costs)), list(measured.costs), rotation=90, fontsize=5)
    axis.set_title(
        f"{measured.architecture}, {measured.metric}: log10 of nats per token (blank: not above 0)",
        fontsize=_SMALL,
        loc="left",
    )
    axis.figure.colorbar(image, ax=axis)


def _panels(
    new_figure: Any, items: Sequence[Any], panel: Callable[[Any, Any], None], *, height: float
) -> Any:
    figure = new_figure(figsize=(9, height * len(items)), layout="constrained")
    axes = figure.subplots(len(items), 1, squeeze=False)
    for axis, item in zip(axes[:, 0], items, strict=True):
        panel(axis, item)
    return figure
