"""Every claim fails when what it claims is not so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from loadtest.checks import Check, check_conditions, check_run
from loadtest.measures import Observed, Step, recovery_s, summarize, taken_in_turn_ms
from loadtest.page import page_of
from loadtest.report import make_report
from loadtest.run import BURSTS, IDLE, OVERLOAD, RAMP, RECOVERY, STEADY, Run
from loadtest.samples import HUNG_UP, UNANSWERED, Sample, outcome_of

KIND = "10-best"
MIB = 1 << 20
DEADLINE_S = 1.0
CAPACITY = 100.0


def sample(planned_s: float, latency_s: float = 0.01, outcome: str = "200") -> Sample:
    """One request that was sent when planned."""
    stages = {"forward": 9.0, "total": 9.5}
    return Sample(KIND, "whole", planned_s, planned_s, planned_s + latency_s, outcome, stages)


def step(name: str, rate: float, duration_s: float = 1.0, start_s: float = 0.0) -> Step:
    """Requests at an even pace, all well answered."""
    times = [start_s + number / rate for number in range(round(rate * duration_s))]
    return Step(
        name,
        is_open=not name.startswith(IDLE),
        duration_s=duration_s,
        deadline_s=DEADLINE_S,
        samples=[sample(at_s) for at_s in times],
        observed=Observed(rss_halves_bytes=(100 * MIB, 101 * MIB)),
        start_s=start_s,
    )


def good_run() -> Run:
    """A run that passes."""
    burst = step(BURSTS, 30.0)
    metrics = {
        "rescore_batch_sequences_count": 10.0,
        "rescore_batch_sequences_sum": 30.0,
        'rescore_batch_sequences_bucket{le="1.0"}': 4.0,
    }
    steps = [
        step(f"{IDLE}, {KIND}", 50.0),
        step(f"{IDLE}, 100-best", 50.0),
        step(STEADY, 70.0),
        step(OVERLOAD, 200.0),
        step(RECOVERY, 10.0, 2.0, start_s=1.0),
        replace(burst, observed=replace(burst.observed, metrics=metrics)),
    ]
    return Run(steps, CAPACITY, 100 * MIB, 101 * MIB, 102 * MIB)


def with_step(run: Run, name: str, change: Callable[[Step], Step]) -> Run:
    """The run with another step of that name."""
    return replace(run, steps=[change(one) if one.name == name else one for one in run.steps])


def with_sample(run: Run, name: str, changed: Sample) -> Run:
    """The run with the first sample of a step replaced."""
    return with_step(run, name, lambda one: replace(one, samples=[changed, *one.samples[1:]]))


def failed(checks: list[Check]) -> list[str]:
    """The claims that do not hold."""
    return [check.claim for check in checks if not check.is_passed]


def test_a_good_run_passes() -> None:
    assert failed(check_run(good_run(), KIND)) == []
    assert failed(check_conditions(good_run())) == []


@pytest.mark.parametrize(
    ("name", "changed", "claims"),
    [
        (STEADY, sample(0.0, outcome="200 deadline"), ["70 %: answered 200"]),
        (STEADY, sample(0.0, outcome="429 overloaded"), ["70 %: answered 200"]),
        (STEADY, sample(0.0, 0.9), ["70 %: p99"]),
        (OVERLOAD, sample(0.0, 1.06), ["answers 50 ms after"]),
        (OVERLOAD, sample(0.0, 1.06, "429 overloaded"), ["answers 50 ms after"]),
        (OVERLOAD, sample(0.0, outcome="500 internal"), ["answers 500"]),
        (OVERLOAD, Sample(KIND, "whole", 0.0, outcome=UNANSWERED), ["without an answer"]),
        (OVERLOAD, Sample(KIND, "gone mid-body", 0.0, outcome=HUNG_UP), []),
    ],
)
def test_one_bad_answer_is_seen(name: str, changed: Sample, claims: list[str]) -> None:
    found = failed(check_run(with_sample(good_run(), name, changed), KIND))
    assert len(found) == len(claims)
    for claim, wanted in zip(found, claims, strict=True):
        assert wanted in claim


def test_goodput_is_what_was_good_and_in_time() -> None:
    def half_degraded(one: Step) -> Step:
        rest = [replace(s, outcome="200 deadline") for s in one.samples[80:]]
        return replace(one, samples=[*one.samples[:80], *rest])

    run = with_step(good_run(), OVERLOAD, half_degraded)
    assert failed(check_run(run, KIND)) == ["200 %: goodput, of capacity"]
    assert summarize(run.step(OVERLOAD)).goodput_per_s == 80.0


def test_answers_after_the_end_of_a_step_are_not_its_goodput() -> None:
    one = step(OVERLOAD, 100.0)
    late = replace(one, samples=[sample(s.planned_s, 0.5) for s in one.samples])
    assert summarize(late).goodput_per_s == pytest.approx(50.0, abs=1.0)


def test_a_recovery_counts_from_the_first_probe_and_needs_some_in_a_row() -> None:
    def slow_until(end_s: float) -> list[Sample]:
        return [
            sample(5.0 + 0.1 * number, 0.5 if 0.1 * number < end_s else 0.01)
            for number in range(40)
        ]

    assert recovery_s(slow_until(0.0), limit_s=0.05) == 0.0
    assert recovery_s(slow_until(1.95), limit_s=0.05) == pytest.approx(2.0)
    probes = slow_until(1.95)
    probes[2] = sample(5.2)
    assert recovery_s(probes, limit_s=0.05) == pytest.approx(2.0)
    assert recovery_s(slow_until(99.0), limit_s=0.05) is None

    run = with_step(good_run(), RECOVERY, lambda one: replace(one, samples=slow_until(2.5)))
    assert "after its end" in "".join(failed(check_run(run, KIND)))


def test_memory_that_grows_is_seen() -> None:
    def growing(one: Step) -> Step:
        return replace(one, observed=Observed(rss_halves_bytes=(100 * MIB, 120 * MIB)))

    assert "memory" in "".join(failed(check_run(with_step(good_run(), OVERLOAD, growing), KIND)))


def test_passes_of_one_list_each_are_seen() -> None:
    run = with_step(good_run(), BURSTS, lambda one: replace(one, observed=Observed()))
    assert "two lists or more" in "".join(failed(check_run(run, KIND)))


def test_a_server_that_takes_more_than_its_engine_is_seen() -> None:
    def heavy(one: Step) -> Step:
        return replace(one, samples=[sample(s.planned_s, 0.012) for s in one.samples])

    run = with_step(good_run(), f"{IDLE}, 100-best", heavy)
    assert "all but the engine" in "".join(failed(check_run(run, KIND)))


def test_a_generator_that_is_late_makes_the_run_invalid() -> None:
    def late(one: Step) -> Step:
        return replace(one, samples=[replace(s, sent_s=s.planned_s + 0.05) for s in one.samples])

    (claim,) = failed(check_conditions(with_step(good_run(), BURSTS, late)))
    assert "sent when planned" in claim
    assert failed(check_conditions(with_step(good_run(), f"{IDLE}, {KIND}", late))) == []


def test_a_machine_that_works_for_others_makes_the_run_invalid() -> None:
    def crowded(one: Step) -> Step:
        metrics = {"process_cpu_seconds_total": 1.0}
        seen = Observed(metrics=metrics, generator_cpu_s=0.1, busy_s=1.5, wall_s=1.0)
        return replace(one, observed=seen)

    run = with_step(good_run(), STEADY, crowded)
    assert summarize(run.step(STEADY)).other_cores == pytest.approx(0.4)
    (claim,) = failed(check_conditions(run))
    assert "other programs" in claim


def test_a_generator_that_is_busy_makes_the_run_invalid() -> None:
    def busy(one: Step) -> Step:
        seen = Observed(generator_cpu_s=1.2, busy_s=1.3, wall_s=2.0)
        return replace(one, observed=seen)

    (claim,) = failed(check_conditions(with_step(good_run(), f"{IDLE}, {KIND}", busy)))
    assert "generator took" in claim  # in a closed step, where it is never late


def test_what_cannot_be_seen_does_not_hold() -> None:
    def unseen(one: Step) -> Step:
        return replace(one, observed=Observed(wall_s=2.0))

    run = with_step(good_run(), OVERLOAD, unseen)
    found = [*check_conditions(run), *check_run(run, KIND)]
    assert [
        (one.claim.partition(":")[2], one.is_passed) for one in found if "not seen" in one.found
    ] == [
        ("", False),
        (" memory in its second half, of the first", False),
    ]


def test_outcomes_are_found_without_reading_the_body() -> None:
    body = b'{"results":[{"degraded":[],"hypotheses":[{"text":"\\"degraded\\":[\\"x"}]}]}'
    assert outcome_of(200, body) == "200"
    assert outcome_of(200, body.replace(b"[],", b'["overloaded"],')) == "200 overloaded"
    assert outcome_of(503, b'{"code":"draining"}') == "503 draining"
    assert outcome_of(0, b"") == UNANSWERED


def test_requests_taken_in_turn_wait_for_those_before_them() -> None:
    idle = [sample(0.0)] * 5  # 9 ms of engine, 10 ms in all
    found = taken_in_turn_ms([0.0, 0.004, 0.008, 1.0], idle)
    assert found["max"] == pytest.approx(9 + 9 - 8 + 10)
    assert found["p50"] == pytest.approx((10 + (9 - 4 + 10)) / 2)
    assert taken_in_turn_ms([0.0, 1.0], idle)["max"] == pytest.approx(10.0)
    assert taken_in_turn_ms([0.0], []) == {}


def test_the_steady_load_is_set_against_a_queue_without_faults() -> None:
    (claim,) = (one for one in check_run(good_run(), KIND) if "p99" in one.claim)
    assert claim.found == "10.0 ms; one engine in turn, as fast as when idle: 10.0 ms"


def test_late_answers_are_no_goodput_of_any_moment() -> None:
    late = replace(step(RAMP, 50.0), samples=[sample(at / 50.0, 1.06) for at in range(50)])
    run = replace(good_run(), steps=[*good_run().steps, late])
    report = make_report(run, KIND, machine={}, settings={})
    assert [span.offered_per_s for span in report.spans[RAMP]] == pytest.approx([51.0] * 50, abs=1)
    assert {span.goodput_per_s for span in report.spans[RAMP]} == {0.0}
    assert all(span.goodput_per_s for span in report.spans[STEADY])


def test_a_step_without_good_answers_has_no_times_on_the_page() -> None:
    shed = [sample(at / 50.0, outcome="429 overloaded") for at in range(50)]
    run = replace(good_run(), steps=[*good_run().steps, replace(step(RAMP, 50.0), samples=shed)])
    page = page_of(make_report(run, KIND, machine={}, settings={}), {})
    (stages,) = re.findall("<h2>Stages.*?</table>", page)
    assert "<tr><td>ramp" + "<td> / " * 5 in stages
