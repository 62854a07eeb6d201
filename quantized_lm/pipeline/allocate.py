"""Choose a format for each matrix under a byte budget: exactly, or as a person would.

Knows costs and sizes by tensor and choice; neither models nor data. Costs are taken to add up,
which is an assumption: what the chosen formats do together has to be measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import InputError
from quantized_lm.pipeline.rates import (
    RateCurve,
    allocate_on_curves,
    allocate_rates,
    cost_at,
    levels_for,
)
from quantized_lm.pipeline.rounding import rate_of
from quantized_lm.pipeline.sensitivity import SensitivityReport
from quantized_lm.pipeline.sizes import SizeTable
from quantized_lm.quant.formats import Grid, get_format
from quantized_lm.records import read_record

Costs = Mapping[str, Mapping[str, float]]
# Of levels over a rate: rows of unlike codes take fewer bits in a file than at their entropy, and
# under one price a matrix may be handed more.
_HEADROOM = 0.3


@dataclass(frozen=True)
class Allocation:
    """A format for each matrix.

    Attributes:
        metric: what the formats were chosen by.
        formats: choice such as "4bit:normal" by tensor name; can stand as a recipe's `formats`.
        budget_bytes, size_bytes: allowed and used, of weights.safetensors with everything in it.
        float_bytes: the same architecture in float32.
        cost: sum over the tensors, in the metric's unit; 0 where it has none.
        rates: bits per weight that codes are to take at their entropy, by tensor name; empty where
            formats alone are chosen.
    """

    metric: str
    formats: dict[str, str]
    budget_bytes: int
    size_bytes: int
    float_bytes: int
    cost: float
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def compression(self) -> float:
        """Float32 bytes over stored bytes."""
        return self.float_bytes / self.size_bytes


def rated_allocation(
    report: SensitivityReport,
    weights: Mapping[str, int],
    *,
    at: str,
    bits: float,
    budget_bytes: int | None = None,
) -> Allocation:
    """Bits for the codes of each matrix by its sensitivity, for `method: rated`.

    By costs at several rates where the report has them (`has_rates`), else by those of one choice.

    Args:
        report: what rounding each matrix costs. at: the choice whose costs are compared then.
        weights: how many each matrix has.
        bits: mean over all weights, of the file where costs are at rates, else at the codes'
            entropy.
        budget_bytes: what the file is hoped to come to; by default these and what is not packed;
            where costs are of one choice also scales and tables, uncoded.

    Raises:
        InputError: the choice was not measured, or as `allocate_rates` or `allocate_on_curves`.
    """
    if has_rates(report):
        return _curved_allocation(report, weights, bits, budget_bytes)
    if any(at not in row for row in report.costs.values()):
        raise InputError(f"sensitivities at {at!r} are missing; need them for every matrix")
    costs = {name: row[at].mean for name, row in report.costs.items()}
    rates = allocate_rates(costs, weights, bits=bits)
    measured_bits = get_format(Grid.parse(at).format).stored_bits
    if budget_bytes is None:
        codes = sum(weights[name] * (rate - measured_bits) for name, rate in rates.items()) / 8
        budget_bytes = report.sizes.total(dict.fromkeys(rates, at)) + math.ceil(codes)
    return Allocation(
        metric=report.metric,
        formats={name: levels_for(rate) for name, rate in rates.items()},
        budget_bytes=budget_bytes,
        size_bytes=budget_bytes,  # what training and coding come to is not known before
        float_bytes=report.sizes.float_bytes,
        cost=sum(cost_at(costs[name], rate - measured_bits) for name, rate in rates.items()),
        rates=rates,
    )


def has_rates(report: SensitivityReport) -> bool:
    """Whether each matrix was measured at several rates."""
    return all(len(_rated(row)) > 1 for row in report.costs.values())


def measure_of(report: SensitivityReport) -> str:
    """The metric, and whether of formats or of rates."""
    return f"{report.metric} at rates" if has_rates(report) else report.metric


def _curved_allocation(
    report: SensitivityReport, weights: Mapping[str, int], bits: float, budget_bytes: int | None
) -> Allocation:
    """As `rated_allocation`, by costs at several rates."""
    curves = {
        name: RateCurve.through(
            (8 * report.sizes.packed[name][choice] / weights[name], row[choice].mean)
            for choice in _rated(row)
        )
        for name, row in report.costs.items()
    }
    rates = allocate_on_curves(curves, weights, bits=bits)
    if budget_bytes is None:
        codes = sum(weights[name] * rate for name, rate in rates.items()) / 8
        budget_bytes = report.sizes.fixed_bytes + math.ceil(codes)
    return Allocation(
        metric=measure_of(report),
        formats={name: levels_for(rate + _HEADROOM) for name, rate in rates.items()},
        budget_bytes=budget_bytes,
        size_bytes=budget_bytes,  # as above
        float_bytes=report.sizes.float_bytes,
        cost=sum(curves[name].cost(rate) for name, rate in rates.items()),
        rates=rates,
    )


def _rated(choices: Iterable[str]) -> list[str]:
    return [choice for choice in choices if rate_of(choice) is not None]


@dataclass(frozen=True, eq=False)
class _Front:
    """Choices for the first tensors that no other choice beats in both size and cost.

    Attributes:
        size: (P,) int64 bytes, ascending. cost: (P,) float64, strictly descending.
        before: (P,) int64, the point of the previous front that it extends.
        choice: (P,) int64, number of the last tensor's choice.
    """

    size: NDArray[np.int64]
    cost: NDArray[np.float64]
    before: NDArray[np.int64]
    choice: NDArray[np.int64]


def allocate(report: SensitivityReport, *, budget_bytes: int) -> Allocation:
    """The exact minimum of the summed sensitivity under the budget.

    A cost below 0 (a negative Hessian trace, or KL within its rounding) counts as 0: no model
    gets better by being rounded more than the metric can tell.

    Raises:
        InputError: the budget is below the smallest reachable size, or codes at a rate are among
            the choices.
    """
    if any(_rated(row) for row in report.costs.values()):
        raise InputError("costs were measured at rates; formats need `sensitivity` without @BITS")
    costs = {
        name: {choice: max(cost.mean, 0.0) for choice, cost in row.items()}
        for name, row in report.costs.items()
    }
    return allocate_costs(costs, report.sizes, budget_bytes=budget_bytes, metric=report.metric)


def allocate_costs(costs: Costs, sizes: SizeTable, *, budget_bytes: int, metric: str) -> Allocation:
    """Minimize sum_i cost[i, b_i] subject to fixed + sum_i size[i, b_i] <= budget, exactly.

    Dynamic programming over the tensors: each front of sizes and costs is merged with the next
    tensor's choices, and what another point dominates is dropped. Of equal costs the smaller size
    wins, and of equal sizes that whose earlier tensors are smaller.

    Args:
        costs: finite, for every tensor and choice of `sizes`.
        metric: names the costs.

    Raises:
        InputError: the budget is below the smallest reachable size.
    """
    _require_reachable(sizes, budget_bytes)
    rooms = _rooms(sizes, budget_bytes)
    front = _Front(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    fronts = []
    for (name, row), room in zip(sizes.packed.items(), rooms, strict=True):
        size = np.array(list(row.values()), np.int64)
        cost = np.array([costs[name][choice] for choice in row], np.float64)
        front = _extended(front, size, cost, room)
        fronts.append(front)
    formats = _traced(fronts, sizes)
    return _allocation(sizes, formats, budget_bytes, metric, float(front.cost[-1]))


def manual_allocation(sizes: SizeTable, *, budget_bytes: int) -> Allocation:
    """What a person would choose without measuring: the papers' baseline, as reconstructed here.

    The embedding, which is the output layer too, and the first and the last of three or more layers
    get one step more than the rest, the largest step that fits. What is left is given away
    one step up at a time: to the embedding, to the first layer, to the last, and so on from the
    outside in, in rounds until no step fits.

    Raises:
        InputError: the budget is below the smallest reachable size.
    """
    _require_reachable(sizes, budget_bytes)
    choices = {name: list(row) for name, row in sizes.packed.items()}
    order = _protected_first(list(choices))

    def formats(level: Mapping[str, int]) -> dict[str, str]:
        return {name: choices[name][level[name]] for name in choices}

    def fits(level: Mapping[str, int]) -> bool:
        return sizes.total(formats(level)) <= budget_bytes

    steps = range(max(map(len, choices.values())) - 1, -1, -1)
    starts = [
        {n: min(step + is_protected, len(choices[n]) - 1) for n, is_protected in order.items()}
        for step in steps
    ]
    level = next(filter(fits, starts), dict.fromkeys(order, 0))
    raised = True
    while raised:
        raised = False
        for name in order:
            higher = {**level, name: level[name] + 1}
            if higher[name] < len(choices[name]) and fits(higher):
                level, raised = higher, True
    return _allocation(sizes, formats(level), budget_bytes, "manual", 0.0)


def read_allocation(path: Path) -> Allocation:
    """What `write_record` wrote.

    Raises:
        DataError: no such file, or it holds something else.
    """
    return read_record(Allocation, path, what="allocation")


def _require_reachable(sizes: SizeTable, budget_bytes: int) -> None:
    smallest = {
        name: min(row.items(), key=lambda item: item[1]) for name, row in sizes.packed.items()
    }
    total = sizes.fixed_bytes + sum(size for _, size in smallest.values())
    if total <= budget_bytes:
        return
    name = max(smallest, key=lambda name: smallest[name][1])
    choice, size = smallest[name]
    raise InputError(
        f"the budget is {budget_bytes} bytes; the smallest reachable size is {total} "
        f"({sizes.float_bytes / total:.1f}x), of which {name!r} alone takes {size} at {choice}"
    )


def _rooms(sizes: SizeTable, budget_bytes: int) -> list[int]:
    """Bytes that the first tensors may take, so that the others still fit: one for each tensor."""
    smallest = [min(row.values()) for row in sizes.packed.values()]
    rest = np.cumsum([0, *smallest[:0:-1]])[::-1]
    return [budget_bytes - sizes.fixed_bytes - int(needed) for needed in rest]


def _extended(
    front: _Front, size: NDArray[np.int64], cost: NDArray[np.float64], room: int
) -> _Front:
    """The front over one tensor more, whose choices have these sizes and costs, (C,) each."""
    sizes = (front.size[:, None] + size).ravel()
    costs = (front.cost[:, None] + cost).ravel()
    order = np.lexsort((costs, sizes))  # stable: of equal points the earlier choices come first
    order = order[: np.searchsorted(sizes[order], room, side="right")]
    lowest_before = np.minimum.accumulate(np.concatenate(([math.inf], costs[order[:-1]])))
    kept = order[costs[order] < lowest_before]
    return _Front(sizes[kept], costs[kept], kept // len(size), kept % len(size))


def _traced(fronts: list[_Front], sizes: SizeTable) -> dict[str, str]:
    """The choices that lead to the cheapest point, which is the last front's last."""
    point = len(fronts[-1].size) - 1
    chosen = []
    for front, (name, row) in zip(reversed(fronts), reversed(sizes.packed.items()), strict=True):
        chosen.append((name, list(row)[front.choice[point]]))
        point = front.before[point]
    return dict(reversed(chosen))


def _protected_first(names: list[str]) -> dict[str, bool]:
    """Names from the outside of the model in, and whether each is what a person protects."""
    layer = {name: _layer(name) for name in names}
    last = max(layer.values())
    outer = {-1, 0, last} if last > 1 else {-1}

    def rank(name: str) -> tuple[int, bool]:
        number = layer[name]
        from_outside = -1 if number < 0 else min(number, last - number)
        return from_outside, number > from_outside

    return {name: layer[name] in outer for name in sorted(names, key=rank)}


def _layer(name: str) -> int:
    """The first number in a dotted name, "blocks.3.out.weight" -> 3; -1 where there is none."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


def _allocation(
    sizes: SizeTable, formats: dict[str, str], budget_bytes: int, metric: str, cost: float
) -> Allocation:
    return Allocation(
        metric=metric,
        formats=formats,
        budget_bytes=budget_bytes,
        size_bytes=sizes.total(formats),
        float_bytes=sizes.float_bytes,
        cost=cost,
    )
