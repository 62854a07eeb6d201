"""Weights with the fewest word errors, from stored scores alone. Runs no model.

A total is linear in the weights, so along a line `start + t * direction` the score of a hypothesis
is a line in t, and the best hypothesis of an utterance follows the upper envelope of its lines.
The error count of a whole set is then known exactly for every t from the points where envelopes
break (Och, "Minimum error rate training in statistical machine translation", ACL 2003). Powell's
method with restarts uses it on several weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import DataError, NonFiniteError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FLAT_WER = 0.0005  # how much WER above the best still counts as flat: 0.05 % absolute
_REACH = 10.0  # a weight may make its term vary this many times as much as the fixed term
_LARGEST_SCORE = 1e100  # that can be squared and added up
_SWEEPS = 20  # of Powell's method per restart; it stops far earlier


@dataclass(frozen=True)
class TuningSet:
    """Stored scores of U lists with T hypotheses in all, and what each answer would cost.

    Attributes:
        names: D names of weights.
        features: (T, D) float64, what each weight multiplies.
        errors: (T,) int64, word errors of each hypothesis.
        starts: (U,) int64, where each list begins; every list holds at least one hypothesis.
        words: reference words of all lists.
    """

    names: tuple[str, ...]
    features: Floats
    errors: Ints
    starts: Ints
    words: int

    def __post_init__(self) -> None:
        is_usable = np.abs(self.features) <= _LARGEST_SCORE  # False where it is NaN
        if not is_usable.all():
            row, column = (int(index) for index in np.argwhere(~is_usable)[0])
            raise NonFiniteError(
                f"{self.names[column]} of hypothesis {row} is {self.features[row, column]}; "
                f"need finite scores of at most {_LARGEST_SCORE:g} in size to tune on"
            )
        if self.starts.size == 0 or self.words == 0:
            raise DataError(
                f"got {self.starts.size} lists with {self.words} reference words; "
                "need at least one of each to tune on"
            )

    @property
    def sizes(self) -> Ints:
        """(U,) hypotheses of each list."""
        return np.diff(np.append(self.starts, self.errors.size))


@dataclass(frozen=True)
class Curve:
    """Errors along a line: `errors[k]` for thresholds[k-1] < t < thresholds[k].

    Attributes:
        thresholds: (E,) float64, ascending and distinct, each a change of the error count.
        errors: (E + 1,) int64.
    """

    thresholds: Floats
    errors: Ints


@dataclass(frozen=True)
class Interval:
    """Part of a line with one error count, cut at the ends of the search."""

    low: float
    high: float
    errors: int

    @property
    def middle(self) -> float:
        """Where to stand: as far from both ends as can be."""
        return 0.5 * (self.low + self.high)


@dataclass(frozen=True)
class Flatness:
    """How far one weight may move, the others kept.

    Attributes:
        name: of the weight.
        value: the tuned weight.
        same: where the error count is the best one.
        near: where WER is at most `FLAT_WER`, or one error, above it.
    """

    name: str
    value: float
    same: tuple[float, float]
    near: tuple[float, float]


@dataclass(frozen=True)
class TuningResult:
    """The tuned weights and what they are worth on the set they were tuned on.

    Attributes:
        weights: name -> value, fixed ones included.
        errors: word errors with these weights.
        flatness: one entry per tuned weight.
        line_searches: how many were made.
    """

    weights: Mapping[str, float]
    errors: int
    flatness: tuple[Flatness, ...]
    line_searches: int


def tune(
    data: TuningSet,
    start: Mapping[str, float],
    free: Sequence[str],
    *,
    restarts: int = 8,
    seed: int = 0,
) -> TuningResult:
    """Minimize pooled word errors over the free weights; among equals, the middle of the widest.

    A free weight is searched within plus or minus 10 times the value at which its term varies as
    much inside a list as the fixed terms do. The first search begins at `start`, the second with
    all free weights at 0, the others at random points; same seed, same result. The result is
    never worse than `start` on this set.

    Args:
        data: the stored scores.
        start: name -> weight, for all of `data.names`.
        free: names of the weights to change.
        restarts: number of starting points.
        seed: of the random points and directions.

    Raises:
        DataError: a free name is not one of `data.names`.
    """
    for name in free:
        if name not in data.names:
            known = ", ".join(data.names)
            raise DataError(f"weight to tune is {name!r}; the stored scores have {known}")
    search = _Search(data, np.array([start[name] for name in data.names]), free)
    generator = np.random.default_rng(seed)
    best = search.descend(search.origin, generator)
    for restart in range(1, restarts):
        point = search.origin.copy()
        spread = search.random_spread(generator) if restart > 1 else 0.0
        point[search.free] = spread
        found = search.descend(point, generator)
        if found.errors < best.errors:
            best = found
    return TuningResult(
        weights=dict(zip(data.names, best.point.tolist(), strict=True)),
        errors=best.errors,
        flatness=tuple(search.flatness(best, axis) for axis in search.free),
        line_searches=search.line_searches,
    )


def count_errors(data: TuningSet, weights: Floats) -> int:
    """Word errors if every list answers with its best total; ties keep the decoder's order."""
    return int(data.errors[_best_of(data, data.features @ weights)].sum())


def error_curve(data: TuningSet, start: Floats, direction: Floats) -> Curve:
    """Exact error count along start + t * direction for every real t.

    All lists walk their envelopes together: each step finds, for every list, the next line that
    overtakes the current one, so the cost is a few passes over T per segment of the longest
    envelope.

    Args:
        data: the stored scores.
        start: (D,) weights at t = 0.
        direction: (D,) change of the weights per unit of t.
    """
    heights, slopes = data.features @ start, data.features @ direction
    lists = _list_of(data)
    current = _steepest(data, -slopes, heights, np.ones(heights.shape, np.bool_))
    first_errors = int(data.errors[current].sum())
    times, changes = [], []
    while True:
        rise = slopes - slopes[current][lists]
        ahead = rise > 0.0
        crossing = np.full(heights.shape, np.inf)
        np.divide(heights[current][lists] - heights, rise, out=crossing, where=ahead)
        when = np.minimum.reduceat(crossing, data.starts)
        moving = np.isfinite(when)
        if not moving.any():
            break
        overtaking = ahead & (crossing == when[lists])
        following = np.where(moving, _steepest(data, slopes, heights, overtaking), current)
        times.append(when[moving])
        changes.append((data.errors[following] - data.errors[current])[moving])
        current = following
    return _accumulate(first_errors, times, changes)


def best_interval(curve: Curve, low: float, high: float) -> Interval:
    """The widest part of the curve between low and high with the fewest errors."""
    inside = (curve.thresholds > low) & (curve.thresholds < high)
    edges = np.concatenate([[low], curve.thresholds[inside], [high]])
    first = int(np.searchsorted(curve.thresholds, low, side="right"))
    errors = curve.errors[first : first + edges.size - 1]
    widths = np.where(errors == errors.min(), np.diff(edges), -1.0)
    place = int(np.argmax(widths))
    return Interval(float(edges[place]), float(edges[place + 1]), int(errors[place]))


@dataclass(frozen=True)
class _Found:
    point: Floats
    errors: int


class _Search:
    """Powell's method on one set; counts its line searches."""

    def __init__(self, data: TuningSet, origin: Floats, free: Sequence[str]) -> None:
        self.data = data
        self.origin = origin
        self.free = [data.names.index(name) for name in free]
        self.bounds = self._bounds()
        self.line_searches = 0

    def descend(self, start: Floats, generator: np.random.Generator) -> _Found:
        """Search along every weight, two random directions and the last sweep's own direction."""
        best = _Found(start, count_errors(self.data, start))
        for _ in range(_SWEEPS):
            before = best
            for direction in self._directions(generator):
                best = self._move(best, direction)
            best = self._move(best, best.point - before.point)
            if best.errors == before.errors:
                break
        # Last, every weight alone, so that each ends in the middle of its own flat part.
        for axis in self.free:
            best = self._move(best, self._unit(axis))
        return best

    def flatness(self, found: _Found, axis: int) -> Flatness:
        """The flat part around one weight of the result."""
        curve = error_curve(self.data, found.point, self._unit(axis))
        low, high = self._limits(found.point, self._unit(axis))
        value = float(found.point[axis])
        reach = [
            _around(curve, found.errors + slack, (low, high))
            for slack in (0, max(1, round(FLAT_WER * self.data.words)))
        ]
        same, near = ((value + ends[0], value + ends[1]) for ends in reach)
        return Flatness(self.data.names[axis], value, same, near)

    def random_spread(self, generator: np.random.Generator) -> Floats:
        """A value for each free weight: either sign, magnitudes over two decades of its bound."""
        sizes = 10.0 ** generator.uniform(-2.0, 0.0, len(self.free))
        signs = generator.choice([-1.0, 1.0], len(self.free))
        return np.asarray(self.bounds[self.free] * sizes * signs, np.float64)

    def _move(self, found: _Found, direction: Floats) -> _Found:
        if not direction.any():
            return found
        self.line_searches += 1
        low, high = self._limits(found.point, direction)
        part = best_interval(error_curve(self.data, found.point, direction), low, high)
        point = found.point + part.middle * direction
        # Counted anew: where two lines cross within rounding, the curve may be off by one list.
        errors = count_errors(self.data, point)
        return _Found(point, errors) if errors <= found.errors else found

    def _directions(self, generator: np.random.Generator) -> list[Floats]:
        directions = [self._unit(axis) for axis in self.free]
        if len(self.free) > 1:
            for _ in range(2):
                direction = np.zeros(self.origin.size)
                direction[self.free] = generator.normal(size=len(self.free))
                directions.append(direction * self.bounds)
        return directions

    def _unit(self, axis: int) -> Floats:
        direction = np.zeros(self.origin.size)
        direction[axis] = 1.0
        return direction

    def _limits(self, point: Floats, direction: Floats) -> tuple[float, float]:
        """The t between which every free weight stays within its bounds."""
        moved = direction != 0.0
        one = (-self.bounds[moved] - point[moved]) / direction[moved]
        other = (self.bounds[moved] - point[moved]) / direction[moved]
        low, high = np.minimum(one, other).max(), np.maximum(one, other).min()
        return min(float(low), 0.0), max(float(high), 0.0)

    def _bounds(self) -> Floats:
        held = self.origin.copy()
        held[self.free] = 0.0
        spreads = _spread(self.data, self.data.features)
        fixed = float(_spread(self.data, (self.data.features @ held)[:, None])[0])
        ratios = np.divide(fixed or 1.0, spreads, out=np.ones(spreads.shape), where=spreads > 0.0)
        return np.asarray(np.maximum(_REACH * ratios, np.abs(self.origin)), np.float64)


def _accumulate(first_errors: int, times: list[Floats], changes: list[Ints]) -> Curve:
    """One curve from all lists' breaks: ascending, equal times joined, empty changes left out."""
    moments, place = np.unique(np.concatenate([*times, np.empty(0)]), return_inverse=True)
    totals = np.zeros(moments.shape, np.int64)
    np.add.at(totals, place, np.concatenate([*changes, np.empty(0, np.int64)]))
    counts = np.concatenate([[0], np.cumsum(totals[totals != 0])]) + first_errors
    return Curve(moments[totals != 0], counts.astype(np.int64))


def _around(curve: Curve, most_errors: int, limits: tuple[float, float]) -> tuple[float, float]:
    """The part around t = 0 with at most this many errors, within the limits."""
    here = int(np.searchsorted(curve.thresholds, 0.0))
    bad = np.flatnonzero(curve.errors > most_errors)
    left, right = bad[bad < here], bad[bad > here]
    low = curve.thresholds[left[-1]] if left.size else -np.inf
    high = curve.thresholds[right[0] - 1] if right.size else np.inf
    return max(float(low), limits[0]), min(float(high), limits[1])


def _best_of(data: TuningSet, totals: Floats) -> Ints:
    """(U,) index of the first hypothesis with the highest total of each list."""
    return _first_true(data, totals == np.maximum.reduceat(totals, data.starts)[_list_of(data)])


def _steepest(data: TuningSet, slopes: Floats, heights: Floats, among: NDArray[np.bool_]) -> Ints:
    """(U,) of each list the line among these with the largest slope, then height, then first.

    A list without any gets its first hypothesis.
    """
    lists = _list_of(data)
    for values in (slopes, heights):
        masked = np.where(among, values, -np.inf)
        among = among & (masked == np.maximum.reduceat(masked, data.starts)[lists])
    return _first_true(data, among)


def _first_true(data: TuningSet, marks: NDArray[np.bool_]) -> Ints:
    positions = np.where(marks, np.arange(marks.size), marks.size)
    first = np.minimum.reduceat(positions, data.starts)
    return np.where(first < marks.size, first, data.starts).astype(np.int64)


def _list_of(data: TuningSet) -> Ints:
    """(T,) the list each hypothesis belongs to."""
    return np.repeat(np.arange(data.starts.size), data.sizes)


def _spread(data: TuningSet, columns: Floats) -> Floats:
    """(D,) root mean square of each column around its list's mean."""
    means = np.add.reduceat(columns, data.starts, axis=0) / data.sizes[:, None]
    return np.asarray(np.sqrt(np.mean((columns - means[_list_of(data)]) ** 2, axis=0)), np.float64)
