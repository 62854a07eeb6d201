"""Who may queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from service.admission import Admission, EngineLoad, QueueLimits
from service.costs import Costs
from service.errors import DeadlineExceededError, DrainingError, OverloadedError
from service.job_queue import JobQueue
from service.jobs import Job, QueuedRequest, Ticket
from service.metrics import Metrics
from service.scheduler import Scheduler
from tests.service.engine_fakes import DoublingModel, engine, job, run, sample

BUSY = EngineLoad(is_idle=False, pass_ends_s=0.0, waves_s=0.0)


class Door:
    """An admission whose model "a" takes 10 ms a node, and a queue before it."""

    def __init__(self, *, budget: int = 100, max_requests: int = 9, max_tokens: int = 500) -> None:
        self.metrics = Metrics()
        costs = Costs(self.metrics)
        for _ in range(50):
            for nodes in (10, 20, 40):
                costs.of("a").observe(nodes, 1, 0.01 * nodes)
        self.model = DoublingModel("a")
        self.queue = JobQueue(self.metrics)
        limits = QueueLimits(budget, max_requests, max_tokens)
        self._admission = Admission(costs, limits, self.metrics)
        self._count = 0

    def job(self, tokens: int, by_s: float) -> Job[int]:
        """Work of that size and deadline."""
        return job(self.model, 1, tokens, by_s=by_s)

    def ask(self, *jobs: Job[Any], load: EngineLoad = BUSY, now_s: float = 0.0) -> None:
        """Queue a request, or raise why not."""
        self._admission.require_room(jobs, self.queue, load, now_s)
        request, tickets = QueuedRequest(), []
        for one in jobs:
            tickets.append(Ticket(one, self._count, now_s, request))
            self._count += 1
        self.queue.add(tickets)

    def shed(self, reason: str) -> float:
        """How many were refused for a reason."""
        return sample(self.metrics, "rescore_shed_total", model="a", reason=reason)


def test_an_idle_engine_takes_whatever_is_not_late_already() -> None:
    door = Door()
    door.ask(door.job(100, by_s=1e-6), load=EngineLoad())
    door = Door()
    with pytest.raises(DeadlineExceededError):
        door.ask(door.job(1, by_s=2.0), load=EngineLoad(), now_s=2.0)


def test_who_would_be_late_behind_the_others_is_refused_and_told_when_to_come_again() -> None:
    door = Door()
    for _ in range(3):
        door.ask(door.job(100, by_s=9.0))  # 1 s each
    with pytest.raises(OverloadedError) as refused:
        door.ask(door.job(50, by_s=9.0 + 1e-9), now_s=6.0)
    assert refused.value.retry_after_s == 3
    assert door.shed("predicted_late") == 1.0
    door.ask(door.job(50, by_s=9.0 + 1e-9), now_s=4.0)


def test_only_what_is_done_before_it_makes_a_request_wait() -> None:
    door = Door()
    for _ in range(4):
        door.ask(door.job(100, by_s=9.0))
    door.ask(door.job(50, by_s=1.0))
    with pytest.raises(OverloadedError):
        door.ask(door.job(50, by_s=1.0))


def test_the_pass_under_way_and_the_searches_that_go_on_count() -> None:
    door = Door()
    with pytest.raises(OverloadedError):
        door.ask(door.job(10, by_s=1.0), load=EngineLoad(is_idle=False, pass_ends_s=0.95))
    door.ask(door.job(10, by_s=1.0), load=EngineLoad(is_idle=False, pass_ends_s=0.5))
    with pytest.raises(OverloadedError):
        door.ask(door.job(10, by_s=1.1), load=EngineLoad(is_idle=False, waves_s=0.5))


def test_who_would_be_late_alone_is_not_told_to_come_again() -> None:
    door = Door()
    with pytest.raises(DeadlineExceededError, match="needs about"):
        door.ask(door.job(100, by_s=0.5))
    assert door.shed("predicted_late") != 1.0


def test_the_jobs_of_a_request_are_added_up() -> None:
    door = Door()
    with pytest.raises(DeadlineExceededError):
        door.ask(*[door.job(50, by_s=1.0)] * 3)
    door.ask(door.job(50, by_s=1.0))


def test_the_queue_is_bounded_in_requests() -> None:
    door = Door(max_requests=2)
    for _ in range(2):
        door.ask(door.job(1, by_s=99.0), door.job(1, by_s=99.0))
    with pytest.raises(OverloadedError, match="2 requests"):
        door.ask(door.job(1, by_s=99.0))
    assert door.shed("queue_full") == 1.0


def test_the_queue_is_bounded_in_tokens_but_takes_any_one_request() -> None:
    door = Door(max_tokens=100)
    door.ask(*[door.job(100, by_s=99.0)] * 3)
    with pytest.raises(OverloadedError, match="301 tree nodes"):
        door.ask(door.job(1, by_s=99.0))


@pytest.mark.parametrize(("tokens", "after_s"), [(1, 1), (100, 12), (10_000, 60)])
def test_retry_after_is_the_time_to_drain_in_whole_seconds(tokens: int, after_s: int) -> None:
    door = Door(max_requests=12, budget=10_000, max_tokens=10**6)
    for _ in range(12):
        door.ask(door.job(tokens, by_s=1e6))
    with pytest.raises(OverloadedError) as refused:
        door.ask(door.job(1, by_s=1e6))
    assert refused.value.retry_after_s == after_s


def test_requests_of_several_models_are_counted_as_several() -> None:
    door = Door(max_requests=1)
    other = DoublingModel("b")
    door.ask(door.job(1, by_s=9.0))
    with pytest.raises(OverloadedError):
        door.ask(door.job(1, by_s=9.0), job(other, 1, by_s=9.0))
    assert sample(door.metrics, "rescore_shed_total", model="several", reason="queue_full") == 1.0


def test_a_refused_request_leaves_no_trace_in_the_queue() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock, max_requests=1)
    (first,) = scheduler.submit([job(model, 1)])
    with pytest.raises(OverloadedError):
        scheduler.submit([job(model, 2)])
    run(scheduler)
    assert first.done()
    assert model.passes == [("a", [1])]


def test_what_comes_after_stop_is_counted_as_draining() -> None:
    metrics, model = Metrics(), DoublingModel()
    scheduler = Scheduler(limits=QueueLimits(9, 9, 9), metrics=metrics, clock=model.clock)
    scheduler.stop()
    with pytest.raises(DrainingError):
        scheduler.submit([job(model, 1)])
    assert sample(metrics, "rescore_shed_total", model="a", reason="draining") == 1.0


def names(tickets: Sequence[Ticket[Any]]) -> list[float]:
    """The deadlines of tickets."""
    return [ticket.job.deadline_s for ticket in tickets]


def test_the_queue_forgets_a_model_that_nothing_waits_for() -> None:
    door = Door()
    door.ask(door.job(4, by_s=2.0), door.job(3, by_s=1.0))
    (waiting,) = door.queue
    assert [waiting.before(by_s) for by_s in (0.9, 1.0, 1.9, 2.0, math.inf)] == [
        (0, 0), (1, 3), (1, 3), (2, 7), (2, 7)
    ]  # fmt: skip
    assert names(waiting.tickets) == [1.0, 2.0]
    assert (door.queue.num_requests, door.queue.num_tokens) == (1, 7)
    door.queue.clear()
    assert not door.queue
    assert (door.queue.num_requests, door.queue.num_tokens) == (0, 0)
