"""A run as plain data: the tables, the page and the JSON are made from this alone."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.checks import Check, check_conditions, check_run
from loadtest.measures import Step, Summary, is_late, percentiles, summarize
from loadtest.run import CAPACITY, OVERLOAD, RAMP, RECOVERY, STEADY, Run
from loadtest.samples import Sample
from quantized_lm.machine import processor_name

METHOD = (
    "Server and generator are two processes on one machine and share its cores; the engine has the "
    "threads that the settings say, so that the event loop and the generator have a core left.",
    "Open steps: arrivals are planned before the first request is sent, and a latency counts from "
    "the planned arrival. Closed steps (idle, capacity): the next request waits for the last.",
    "Goodput: answers 200, not degraded and in time, by the end of the arrivals. Late: answered "
    "50 ms after the deadline or later, from the first byte sent. Capacity: goodput of the best "
    "closed step.",
    "Stages are the server's own words, of good answers.",
)
SPANS = 50  # of a step that is drawn over time


@dataclass(frozen=True)
class Span:
    """A stretch of a step: of the requests planned to arrive in it.

    Attributes:
        at_s: its middle, from the start of the step.
        goodput_per_s: of its requests, those answered well and in time.
    """

    at_s: float
    offered_per_s: float
    goodput_per_s: float
    latency_ms: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        machine: processor, cores, Python, load before the run.
        settings: of server and run.
        spans: steps over time, by name.
        conditions: whether load and machine were as the checks need them to mean anything.
    """

    machine: Mapping[str, str]
    settings: Mapping[str, str]
    capacity_per_s: float
    summaries: Sequence[Summary]
    spans: Mapping[str, Sequence[Span]]
    checks: Sequence[Check]
    conditions: Sequence[Check]
    rss_peak_mib: float

    @property
    def is_valid(self) -> bool:
        """Whether all conditions were met."""
        return all(check.is_passed for check in self.conditions)

    @property
    def is_passed(self) -> bool:
        """Whether every check passed, in a valid run."""
        return self.is_valid and all(check.is_passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {"is_passed": self.is_passed, **dataclasses.asdict(self)}

    def short(self) -> dict[str, Any]:
        """What a script wants to know."""
        return {
            "is_passed": self.is_passed,
            "is_valid": self.is_valid,
            "capacity_per_s": round(self.capacity_per_s, 2),
            "steps": {
                one.name: {
                    "goodput_per_s": round(one.goodput_per_s, 2),
                    "offered_per_s": round(one.offered_per_s, 2),
                    "latency_ms": one.latency_ms,
                    "outcomes": one.outcomes,
                }
                for one in self.summaries
                if not one.name.startswith(CAPACITY)
            },
            "failed": [check.claim for check in self.checks if not check.is_passed],
        }


def machine() -> dict[str, str]:
    """What this is measured on, and how busy it is already."""
    return {
        "processor": processor_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def make_report(
    run: Run, kind: str, *, machine: Mapping[str, str], settings: Mapping[str, str]
) -> Report:
    """Everything there is to say of a run.

    Args:
        kind: of the standard requests.
    """
    return Report(
        machine=machine,
        settings=settings,
        capacity_per_s=run.capacity_per_s,
        summaries=[summarize(step) for step in run.steps],
        spans={
            STEADY: _spans(run.step(STEADY)),
            f"{OVERLOAD} and {RECOVERY}": _spans(run.step(OVERLOAD), run.step(RECOVERY)),
            RAMP: _spans(run.step(RAMP)),
        },
        checks=check_run(run, kind),
        conditions=check_conditions(run),
        rss_peak_mib=run.rss_peak_bytes / (1 << 20),
    )


def _spans(*steps: Step) -> list[Span]:
    """Of steps that follow each other without pause."""
    samples = [one for step in steps for one in step.samples]
    if not samples:
        return []
    length_s = (max(one.planned_s for one in samples) + 1e-9) / SPANS
    groups: list[list[Sample]] = [[] for _ in range(SPANS)]
    for one in samples:
        groups[min(int(one.planned_s / length_s), SPANS - 1)].append(one)
    return [
        Span(
            at_s=(place + 0.5) * length_s,
            offered_per_s=len(group) / length_s,
            goodput_per_s=sum(
                one.is_good and not is_late(one, steps[0].deadline_s) for one in group
            )
            / length_s,
            latency_ms=percentiles(
                [1000.0 * one.latency_s for one in group if one.latency_s is not None]
            ),
        )
        for place, group in enumerate(groups)
    ]
