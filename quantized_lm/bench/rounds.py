"""Whole lists on several systems in turn: times, their spread, and whether the scores agree.

One process works at a time. A round asks every system for every list once, so that a disturbance
of the machine meets all of them alike; medians and quartiles are over rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from quantized_lm.bench import peaks
from quantized_lm.bench.peers.protocol import Description
from quantized_lm.bench.systems import OWN, SystemSpec
from quantized_lm.bench.workers import Worker, WorkerError

T = TypeVar("T")
Start = Callable[[SystemSpec], Worker]
Scores = Sequence[Sequence[float]]


class Track(Protocol):
    """Passes items through while showing how many are done."""

    def __call__(self, items: Sequence[T], description: str, /) -> Iterable[T]:
        """Yield every item."""
        ...


@dataclass(frozen=True)
class RoundOptions:
    """How often to time.

    Attributes:
        rounds: passes over all systems.
        processes: fresh processes for each of our systems as it is served, to see whether they
            agree.
        passes: over all lists, in each fresh process.
    """

    rounds: int = 7
    processes: int = 5
    passes: int = 3


@dataclass(frozen=True)
class SystemTimes:
    """One system on one set of lists. Times are wall time of a list, the mean over the set.

    Attributes:
        failure: why there is nothing else; None when there is.
        rounds_ms: of each round.
        processes_ms: median of each fresh process; of systems as they are served only.
        scores: [list][hypothesis], log P, nats.
        peaks_gops: of int8 dot products with as many threads, metered beside each round; None where
            there are none, empty for other systems.
    """

    spec: SystemSpec
    failure: str | None = None
    description: Description | None = None
    rounds_ms: tuple[float, ...] = ()
    processes_ms: tuple[float, ...] = ()
    scores: Scores = ()
    peaks_gops: tuple[float | None, ...] = ()

    def quantile_ms(self, share: float) -> float:
        """A quantile over rounds."""
        return float(np.quantile(self.rounds_ms, share))

    def share_of_peak(self, operations: float | None) -> float | None:
        """What part of the time the products alone would take at the peak, the median over rounds.

        Args:
            operations: of the products of a list; None where that is not known.
        """
        if operations is None or not self.peaks_gops:
            return None
        shares = [
            1e-6 * operations / peak_gops / round_ms
            for peak_gops, round_ms in zip(self.peaks_gops, self.rounds_ms, strict=True)
            if peak_gops is not None
        ]
        return float(np.median(shares)) if shares else None


@dataclass(frozen=True)
class Agreement:
    """How far scores are from others.

    Attributes:
        max_difference: largest |score - other| / |other|.
        ranking_noise: spread of the error inside a list over the spread of the scores in it, the
            mean over lists; this is what can change an order.
    """

    max_difference: float
    ranking_noise: float


def agreement(scores: Scores, others: Scores) -> Agreement:
    """Compare two systems' scores of the same lists."""
    largest, noise = 0.0, []
    for own, other in zip(scores, others, strict=True):
        error = np.subtract(own, other)
        largest = max(largest, float(np.abs(error / np.asarray(other)).max()))
        noise.append(float(error.std() / max(np.std(other), 1e-12)))
    return Agreement(largest, float(np.mean(noise)))


def time_systems(
    specs: Sequence[SystemSpec],
    start: Start,
    num_lists: int,
    options: RoundOptions,
    track: Track,
) -> list[SystemTimes]:
    """Start, check and time every system; one that fails is returned with its reason."""
    contest = _Contest(start, num_lists)
    try:
        for spec in track(specs, "starting"):
            contest.enter(spec)
        scores = {spec: contest.scores(spec) for spec in specs}
        rounds: dict[SystemSpec, list[float]] = {spec: [] for spec in specs}
        beside: dict[SystemSpec, list[float | None]] = {spec: [] for spec in specs}
        turns = [spec for _ in range(options.rounds) for spec in specs]
        for spec in track(turns, "timing"):
            if spec.peer != OWN:
                rounds[spec] += contest.lap(spec)
                continue
            laps, peak_gops = peaks.beside(partial(contest.lap, spec), spec.threads)
            rounds[spec] += laps
            beside[spec] += [peak_gops] * len(laps)
        descriptions = {spec: worker.description for spec, worker in contest.workers.items()}
    finally:
        contest.stop()
    own = [spec for spec in descriptions if spec.is_served]
    processes: dict[SystemSpec, list[float]] = {spec: [] for spec in specs}
    for spec in track([spec for spec in own for _ in range(options.processes)], "fresh processes"):
        processes[spec] += _fresh_process(spec, _Contest(start, num_lists), options.passes)
    return [
        SystemTimes(spec, failure=contest.failures[spec])
        if spec in contest.failures
        else SystemTimes(
            spec,
            description=descriptions[spec],
            rounds_ms=tuple(rounds[spec]),
            peaks_gops=tuple(beside[spec]),
            processes_ms=tuple(processes[spec]),
            scores=scores[spec],
        )
        for spec in specs
    ]


def _fresh_process(spec: SystemSpec, contest: _Contest, passes: int) -> list[float]:
    """Median of a process that runs alone, in milliseconds; nothing if it fails."""
    try:
        contest.enter(spec)
        laps = [lap for _ in range(passes) for lap in contest.lap(spec)]
    finally:
        contest.stop()
    return [float(np.median(laps))] if laps else []


class _Contest:
    """The running processes, and why others do not run. Who fails is asked no more."""

    def __init__(self, start: Start, num_lists: int) -> None:
        self.workers: dict[SystemSpec, Worker] = {}
        self.failures: dict[SystemSpec, str] = {}
        self._start = start
        self._lists = range(num_lists)

    def enter(self, spec: SystemSpec) -> None:
        """Start a system."""
        try:
            self.workers[spec] = self._start(spec)
        except WorkerError as error:
            self.failures[spec] = str(error)

    def scores(self, spec: SystemSpec) -> Scores:
        """Of every list."""
        return self._ask(spec, lambda worker: [worker.scores(index) for index in self._lists])

    def lap(self, spec: SystemSpec) -> list[float]:
        """Mean time of a list, in milliseconds, as the only entry; no entry if the system fails."""
        seconds = self._ask(spec, lambda worker: [worker.time(index) for index in self._lists])
        return [1e3 * float(np.mean(seconds))] if seconds else []

    def stop(self) -> None:
        """End every process."""
        for worker in self.workers.values():
            worker.stop()

    def _ask(self, spec: SystemSpec, question: Callable[[Worker], list[T]]) -> list[T]:
        if spec in self.failures:
            return []
        try:
            return question(self.workers[spec])
        except WorkerError as error:
            self.failures[spec] = str(error)
            return []
