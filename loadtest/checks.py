"""What a run has to show to pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.bodies import kind_of_size
from loadtest.measures import (
    Summary,
    good_share,
    recovery_s,
    share_beside_engine,
    summarize,
    taken_in_turn_ms,
)
from loadtest.run import BURSTS, IDLE, OVERLOAD, RECOVERY, STEADY, Run

TIMES_IDLE = 3.0
MARGIN_MS = 20.0
GOODPUT_SHARE = 0.9
RECOVERY_S = 2.0
BESIDE_ENGINE = 0.15
ENGINE_SIZE = 100  # hypotheses of the request whose engine time is the measure
GROWTH = 0.05  # of memory
MIB = 1 << 20
OTHER_CORES = 0.25
# Of the one core that the generator can have. In a closed step it is never late, only slow.
GENERATOR_CORES = 0.5
LONG_S = 1.0  # the system counts in hundredths of a second: too coarse for less
SENT_LATE_MS = 20.0  # p99 in any open step; later than that, and the load was not the planned one


@dataclass(frozen=True)
class Check:
    """One claim: what was wanted, what was found."""

    claim: str
    wanted: str
    found: str
    is_passed: bool


def check_run(run: Run, kind: str) -> list[Check]:
    """Every claim about the server.

    Args:
        kind: of the standard requests.
    """
    summaries = {step.name: summarize(step) for step in run.steps}
    idle_ms = summaries[f"{IDLE}, {kind}"].latency_ms.get("p50", 0.0)
    limit_ms = TIMES_IDLE * idle_ms + MARGIN_MS
    return [
        *_at_steady(run, kind, summaries[STEADY], limit_ms),
        *_at_overload(run, summaries[OVERLOAD], limit_ms),
        *_always(list(summaries.values())),
        _memory(run),
        _beside_engine(run),
        _shared(summaries[BURSTS]),
    ]


def check_conditions(run: Run) -> list[Check]:
    """Whether the load was the planned one and the machine free; if not, the rest means nothing."""
    late_ms = max(
        (summarize(step).sent_late_ms.get("p99", 0.0) for step in run.steps if step.is_open),
        default=0.0,
    )
    long = [step for step in run.steps if step.observed.wall_s >= LONG_S]
    is_seen = all(step.observed.busy_s > 0.0 for step in long)
    others = max((summarize(step).other_cores for step in long), default=0.0)
    own = max((summarize(step).generator_cores for step in long), default=0.0)
    return [
        Check(
            "requests were sent when planned: p99 of the worst step",
            f"<= {SENT_LATE_MS:g} ms",
            f"{late_ms:.2f} ms",
            late_ms <= SENT_LATE_MS,
        ),
        Check(
            "cores that other programs took, in the worst step",
            f"<= {OTHER_CORES:g}",
            f"{others:.2f}" if is_seen else "not seen",
            is_seen and others <= OTHER_CORES,
        ),
        Check(
            "cores that the generator took, in the worst step",
            f"<= {GENERATOR_CORES:g}",
            f"{own:.2f}",
            own <= GENERATOR_CORES,
        ),
    ]


def _at_steady(run: Run, kind: str, steady: Summary, limit_ms: float) -> list[Check]:
    samples = run.step(STEADY).samples
    share = good_share(samples)
    p99_ms = steady.latency_ms.get("p99")
    in_turn = taken_in_turn_ms(
        sorted(one.planned_s for one in samples), run.step(f"{IDLE}, {kind}").samples
    )
    return [
        Check("70 %: answered 200, not degraded", "100 %", f"{share:.2%}", share == 1.0),
        Check(
            f"70 %: p99, from {TIMES_IDLE:g} x idle p50 + {MARGIN_MS:g} ms",
            f"<= {limit_ms:.1f} ms",
            f"{_ms(p99_ms)}; one engine in turn, as fast as when idle: {_ms(in_turn.get('p99'))}",
            p99_ms is not None and p99_ms <= limit_ms,
        ),
    ]


def _at_overload(run: Run, overload: Summary, limit_ms: float) -> list[Check]:
    share = overload.goodput_per_s / run.capacity_per_s
    recovered_s = recovery_s(run.step(RECOVERY).samples, limit_s=limit_ms / 1000.0)
    return [
        Check(
            "200 %: goodput, of capacity",
            f">= {GOODPUT_SHARE:.0%}",
            f"{share:.1%}",
            share >= GOODPUT_SHARE,
        ),
        Check(
            "200 %: answers as when idle again, after its end",
            f"<= {RECOVERY_S:g} s",
            "not seen" if recovered_s is None else f"{recovered_s:.1f} s",
            recovered_s is not None and recovered_s <= RECOVERY_S,
        ),
    ]


def _always(summaries: Sequence[Summary]) -> list[Check]:
    unanswered = sum(one.unanswered for one in summaries)
    late = sum(one.late for one in summaries)
    failed = sum(
        count
        for one in summaries
        for outcome, count in one.outcomes.items()
        if outcome.startswith("500")
    )
    return [
        Check("all steps: requests without an answer", "0", str(unanswered), unanswered == 0),
        Check("all steps: answers 50 ms after their deadline", "0", str(late), late == 0),
        Check("all steps: answers 500", "0", str(failed), failed == 0),
    ]


def _memory(run: Run) -> Check:
    claim = "200 %: memory in its second half, of the first"
    first, second = (size / MIB for size in run.step(OVERLOAD).observed.rss_halves_bytes)
    if not first:  # a server that is not ours
        return Check(claim, f"<= {1 + GROWTH:.0%}", "not seen", is_passed=False)
    limit = first * (1 + GROWTH)
    return Check(
        claim,
        f"<= {limit:.0f} MiB",
        f"{second:.0f} MiB; all steps {run.rss_before_bytes / MIB:.0f} to "
        f"{run.rss_after_bytes / MIB:.0f}, peak {run.rss_peak_bytes / MIB:.0f}",
        0.0 < second <= limit,
    )


def _beside_engine(run: Run) -> Check:
    kind = kind_of_size(ENGINE_SIZE)
    share = share_beside_engine(run.step(f"{IDLE}, {kind}").samples)
    return Check(
        f"idle, {kind}: all but the engine, of engine time",
        f"< {BESIDE_ENGINE:.0%}",
        "not seen" if share is None else f"{share:.1%}",
        share is not None and share < BESIDE_ENGINE,
    )


def _shared(bursts: Summary) -> Check:
    return Check(
        "bursts: forward passes of two lists or more",
        "> 0",
        f"{bursts.shared_passes}, {bursts.lists_per_pass:.2f} lists in a pass",
        bursts.shared_passes > 0,
    )


def _ms(value: float | None) -> str:
    return "not seen" if value is None else f"{value:.1f} ms"
