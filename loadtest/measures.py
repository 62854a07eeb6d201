"""What the requests of one step come to, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from loadtest.samples import OK, UNANSWERED, Sample

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
LATE_S = 0.05  # an answer that much after its deadline is late
STAGES = ("queue", "tokenize", "forward", "combine", "total")
_ONE_LIST = 'rescore_batch_sequences_bucket{le="1.0"}'
_PASSES = "rescore_batch_sequences_count"
_LISTS = "rescore_batch_sequences_sum"
_CPU = "process_cpu_seconds_total"


@dataclass(frozen=True)
class Observed:
    """What was seen of server and generator while a step ran.

    Attributes:
        metrics: how much each sample of /metrics rose.
        rss_bytes: resident memory of the server at the end of the step.
        rss_halves_bytes: its peaks in the first and in the second half of the step.
        generator_cpu_s: processor time of the generator.
        busy_s: of all cores it may run on, whoever had them.
        wall_s: how long the step took, its last answers included.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    rss_bytes: int = 0
    rss_halves_bytes: tuple[int, int] = (0, 0)
    generator_cpu_s: float = 0.0
    busy_s: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step of a run, as it went.

    Attributes:
        name: for programs and readers.
        is_open: whether arrivals were planned; else every client waited for its answer.
        duration_s: in which requests arrived.
        start_s: what the times of its samples count from, where it follows another without pause.
    """

    name: str
    is_open: bool
    duration_s: float
    deadline_s: float
    samples: Sequence[Sample]
    observed: Observed = Observed()
    start_s: float = 0.0


@dataclass(frozen=True)
class Summary:
    """One step in numbers.

    Attributes:
        offered_per_s: requests planned. goodput_per_s: answered in time and not degraded, while
            requests still arrived.
        outcomes: how many of each. late: answered LATE_S after their deadline or later.
        latency_ms: of the answers, from the planned arrival, by percentile.
        good_latency_ms: of those that were not degraded. by_kind_ms: of each kind of request.
        stages_ms: of the good answers, by stage and percentile; the server's own words.
        sent_late_ms: first byte minus planned arrival.
        lists_per_pass: mean over forward passes. shared_passes: with two lists or more.
        server_cores, generator_cores, other_cores: processor time over wall time.
    """

    name: str
    is_open: bool
    duration_s: float
    requests: int
    offered_per_s: float
    goodput_per_s: float
    outcomes: Mapping[str, int]
    unanswered: int
    late: int
    latency_ms: Mapping[str, float]
    good_latency_ms: Mapping[str, float]
    by_kind_ms: Mapping[str, Mapping[str, float]]
    stages_ms: Mapping[str, Mapping[str, float]]
    sent_late_ms: Mapping[str, float]
    lists_per_pass: float
    shared_passes: int
    server_cores: float
    generator_cores: float
    other_cores: float
    rss_mib: float


def summarize(step: Step) -> Summary:
    """The numbers of one step; percentiles of nothing are absent."""
    samples = [sample for sample in step.samples if not sample.is_client_fault]
    good = [sample for sample in samples if sample.is_good]
    kinds = sorted({sample.kind for sample in samples})
    seen = step.observed
    passes = seen.metrics.get(_PASSES, 0.0)
    wall_s = seen.wall_s or 1.0
    server_s = seen.metrics.get(_CPU, 0.0)
    return Summary(
        name=step.name,
        is_open=step.is_open,
        duration_s=step.duration_s,
        requests=len(step.samples),
        offered_per_s=len(step.samples) / step.duration_s,
        goodput_per_s=len(in_time(step)) / step.duration_s,
        outcomes=dict(Counter(sample.outcome for sample in step.samples).most_common()),
        unanswered=sum(sample.outcome == UNANSWERED for sample in samples),
        late=sum(is_late(sample, step.deadline_s) for sample in samples),
        latency_ms=latencies_ms(samples),
        good_latency_ms=latencies_ms(good),
        by_kind_ms={
            kind: latencies_ms([one for one in samples if one.kind == kind]) for kind in kinds
        },
        stages_ms={
            stage: percentiles([one.stages_ms[stage] for one in good if stage in one.stages_ms])
            for stage in STAGES
        },
        sent_late_ms=percentiles([1000.0 * (one.sent_s - one.planned_s) for one in step.samples]),
        lists_per_pass=seen.metrics.get(_LISTS, 0.0) / passes if passes else 0.0,
        shared_passes=round(passes - seen.metrics.get(_ONE_LIST, 0.0)),
        server_cores=server_s / wall_s,
        generator_cores=seen.generator_cpu_s / wall_s,
        other_cores=max(seen.busy_s - server_s - seen.generator_cpu_s, 0.0) / wall_s,
        rss_mib=seen.rss_bytes / (1 << 20),
    )


def in_time(step: Step) -> list[Sample]:
    """Good answers that came in time and before the last request was planned to arrive."""
    return [
        sample
        for sample in step.samples
        if sample.is_good
        and not is_late(sample, step.deadline_s)
        and sample.done_s is not None
        and sample.done_s <= step.start_s + step.duration_s
    ]


def latencies_ms(samples: Iterable[Sample]) -> dict[str, float]:
    """Percentiles of the latencies of those that were answered."""
    return percentiles([1000.0 * one.latency_s for one in samples if one.latency_s is not None])


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By name; empty for nothing."""
    if not values:
        return {}
    found = np.percentile(values, list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, np.round(found, 3).tolist(), strict=True))


def taken_in_turn_ms(arrivals_s: Sequence[float], idle: Iterable[Sample]) -> dict[str, float]:
    """Percentiles of the latencies that one engine would have that takes the arrivals in turn.

    Each has it for as long as some request of the idle server had, and waits besides for what that
    request did beside the engine: what is left is the queue's own doing.

    Args:
        arrivals_s: ascending.
    """
    seen = _engine_and_all_ms(idle)
    if not seen:
        return {}
    drawn = np.random.default_rng(0).integers(len(seen), size=len(arrivals_s))
    latencies, free_ms = [], 0.0
    for arrival_s, index in zip(arrivals_s, drawn.tolist(), strict=True):
        engine_ms, alone_ms = seen[index]
        begun_ms = max(free_ms, 1000.0 * arrival_s)
        free_ms = begun_ms + engine_ms
        latencies.append(begun_ms - 1000.0 * arrival_s + alone_ms)
    return percentiles(latencies)


def share_beside_engine(samples: Iterable[Sample]) -> float | None:
    """Median of (latency - forward) / forward of good answers; None without any."""
    shares = [(all_ms - engine_ms) / engine_ms for engine_ms, all_ms in _engine_and_all_ms(samples)]
    return float(np.median(shares)) if shares else None


def _engine_and_all_ms(samples: Iterable[Sample]) -> list[tuple[float, float]]:
    """The engine's time of each good answer, and its latency."""
    return [
        (one.stages_ms["forward"], 1000.0 * one.latency_s)
        for one in samples
        if one.is_good and one.latency_s is not None and one.stages_ms.get("forward")
    ]


def recovery_s(probes: Sequence[Sample], *, limit_s: float, in_a_row: int = 5) -> float | None:
    """When a server was itself again: how long after the first probe was planned to arrive.

    That is the arrival of the first of `in_a_row` that were answered well within `limit_s`.

    Returns:
        None if there are none.
    """
    well = [
        one.is_good and one.latency_s is not None and one.latency_s <= limit_s for one in probes
    ]
    for place in range(len(well) - in_a_row + 1):
        if all(well[place : place + in_a_row]):
            return probes[place].planned_s - probes[0].planned_s
    return None


def good_share(samples: Sequence[Sample]) -> float:
    """Of those that did not hang up, the share answered 200 and not degraded; 1 for none."""
    stayed = [one for one in samples if not one.is_client_fault]
    return sum(one.outcome == OK for one in stayed) / len(stayed) if stayed else 1.0


def is_late(sample: Sample, deadline_s: float) -> bool:
    """Whether it was answered LATE_S after its deadline or later."""
    after_s = sample.answered_after_s
    return after_s is not None and after_s > deadline_s + LATE_S
