"""The engine under any load, on a simulated clock: random traffic, and twice what it can do."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DeadlineExceededError, OverloadedError
from service.jobs import Completed, Job
from service.scheduler import GRACE_S, Scheduler
from tests.service.engine_fakes import Clock, Doubling, DoublingModel, engine

BUDGET = 1000
NODE_S, PASS_S, JOB_S = 20e-6, 1e-3, 0.2e-3


def pass_s(nodes: int, jobs: int) -> float:
    """What a pass takes."""
    return NODE_S * nodes + PASS_S + JOB_S * jobs


@dataclass(eq=False)
class Waiter:
    """One request, as its client sees it.

    Attributes:
        leaves_s: when its client hangs up.
        answers: what it was told, and when; the deadline itself is an answer.
    """

    came_s: float
    job: Job[int]
    leaves_s: float = float("inf")
    future: Future[Completed[int] | None] | None = None
    answers: list[tuple[str, float]] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """What it was told."""
        return self.answers[0][0]


class Simulation:
    """Requests that arrive on a clock which only passes and idle waiting move.

    The event loop has its turn before every pass, as it has in a server: a pass that fails is
    followed by one for each of its pieces within the same step of the scheduler.
    """

    def __init__(self, scheduler: Scheduler, clock: Clock, models: Sequence[DoublingModel]) -> None:
        self.scheduler, self.clock = scheduler, clock
        self.waiting: list[Waiter] = []
        self.coming: list[Waiter] = []
        for model in models:
            model.seconds = self._after_a_turn(model.seconds)

    def run(self, waiters: list[Waiter]) -> None:
        """Let all of them arrive and be answered."""
        self.coming = sorted(waiters, key=lambda waiter: waiter.came_s, reverse=True)
        while self.coming or self.waiting:
            self._turn()
            did_something = self.scheduler.step()
            self._answer()
            if not did_something:
                self._idle()
        assert not self.scheduler.step()

    def _after_a_turn(self, seconds: Callable[[int, int], float]) -> Callable[[int, int], float]:
        def timed(nodes: int, jobs: int) -> float:
            self._turn()
            return seconds(nodes, jobs)

        return timed

    def _turn(self) -> None:
        """What the event loop does: take in who came, and tell answers."""
        while self.coming and self.coming[-1].came_s <= self.clock.now_s:
            self._submit(self.coming.pop())
        self._answer()

    def _submit(self, waiter: Waiter) -> None:
        try:
            (future,) = self.scheduler.submit([waiter.job])
        except OverloadedError:
            waiter.answers.append(("refused", self.clock.now_s))
        except DeadlineExceededError:
            waiter.answers.append(("late", self.clock.now_s))
        else:
            waiter.future = future
            self.waiting.append(waiter)

    def _answer(self) -> None:
        """Hand on answers, and give up at deadlines and hang-ups."""
        for waiter in self.waiting:
            future, job = waiter.future, waiter.job
            assert future
            ends_s = min(waiter.leaves_s, job.deadline_s + GRACE_S)
            if future.done():
                waiter.answers.append((_said(future), self.clock.now_s))
            elif self.clock.now_s >= ends_s:
                is_gone = waiter.leaves_s < job.deadline_s
                assert future.cancel()
                waiter.answers.append(("gone" if is_gone else "late", ends_s))
        self.waiting = [waiter for waiter in self.waiting if not waiter.answers]

    def _idle(self) -> None:
        times = [waiter.came_s for waiter in self.coming[-1:]]
        times += [min(w.leaves_s, w.job.deadline_s + GRACE_S) for w in self.waiting]
        if times:
            self.clock.now_s = max(self.clock.now_s, min(times))


def _said(future: Future[Completed[int] | None]) -> str:
    if future.exception():
        return "failed"
    return "done" if future.result() else "late"


def models(clock: Clock, count: int) -> list[DoublingModel]:
    """Models that share a clock and a list of passes."""
    passes: list[tuple[str, list[int]]] = []
    return [DoublingModel(name, clock, pass_s, passes) for name in "abc"[:count]]


@st.composite
def traffic(draw: st.DrawFn) -> tuple[Clock, list[Waiter], list[DoublingModel]]:
    """Requests of any kind, many at once."""
    clock = Clock()
    served = models(clock, draw(st.integers(1, 3)))
    waiters = []
    for number in range(draw(st.integers(1, 40))):
        came_s = draw(st.floats(0.0, 0.2))
        is_search = draw(st.booleans())
        fails_in = draw(st.sampled_from(["", "", "", "", "begin", "next_wave", "learn", "result"]))
        cost_tokens = draw(st.integers(0, BUDGET))
        work = Doubling(
            draw(st.sampled_from([-1, -2])) if draw(st.integers(0, 19)) == 0 else number + 1,
            draw(st.integers(0, 6)),
            cost_tokens,
            fails_in,
            can_stop=is_search,
        )
        deadline_s = came_s + draw(st.floats(1e-4, 0.3))
        model = draw(st.sampled_from(served))
        job = Job(model, work, cost_tokens, deadline_s, is_search)
        waiters.append(Waiter(came_s, job, came_s + draw(st.sampled_from([1e9, 0.0, 0.01]))))
    return clock, waiters, served


@settings(max_examples=60, deadline=None)
@given(traffic())
def test_every_waiter_is_answered_once_and_in_time(
    drawn: tuple[Clock, list[Waiter], list[DoublingModel]],
) -> None:
    clock, waiters, served = drawn
    scheduler = engine(clock, budget=BUDGET, max_tokens=16 * BUDGET)
    longest_s = pass_s(BUDGET, len(waiters))
    Simulation(scheduler, clock, served).run(waiters)
    for waiter in waiters:
        ((said, when_s),) = waiter.answers
        assert when_s <= max(waiter.job.deadline_s + GRACE_S, waiter.came_s) + longest_s
        if waiter.future and said == "done":
            completed = waiter.future.result()
            assert completed
            assert completed.finished_s <= waiter.job.deadline_s + longest_s
    for _, numbers in served[0].passes:
        costs = {waiter.job.work.number: waiter.job.cost_tokens for waiter in waiters}  # type: ignore[attr-defined]
        if not {-1, -2} & set(numbers):
            assert sum(costs[number] for number in numbers) <= BUDGET
    assert scheduler.predicted_wait_s() == 0.0


@st.composite
def crowd(draw: st.DrawFn) -> list[tuple[int, float, int]]:
    """(model, deadline, cost) of requests that all wait at once and can all be on time."""
    one = st.tuples(st.integers(0, 2), st.integers(100, 130).map(float), st.integers(1, BUDGET))
    return draw(st.lists(one, min_size=1, max_size=30))


@settings(max_examples=60, deadline=None)
@given(crowd())
def test_jobs_begin_in_the_order_of_their_deadlines_and_all_of_them(
    jobs: list[tuple[int, float, int]],
) -> None:
    clock = Clock()
    served = models(clock, 3)
    scheduler = engine(clock, budget=BUDGET, max_tokens=10**6)
    futures = [
        scheduler.submit([Job(served[at], Doubling(number, 1, cost), cost, by_s)])[0]
        for number, (at, by_s, cost) in enumerate(jobs)
    ]
    while scheduler.step():
        pass
    assert all(future.result(0) for future in futures)
    left = set(range(len(jobs)))
    for name, numbers in served[0].passes:
        earliest = min(left, key=lambda number: (jobs[number][1], number))
        assert earliest in numbers  # the first of all models leads
        of_model = sorted(
            (n for n in left if "abc"[jobs[n][0]] == name), key=lambda n: (jobs[n][1], n)
        )
        assert numbers == of_model[: len(numbers)]  # and none of its model is overtaken
        left -= set(numbers)
    assert not left


def arrivals(
    rng: random.Random, rate_per_s: float, until_s: float, make: Callable[[], Any]
) -> list[Waiter]:
    """Requests that come at random."""
    waiters, came_s = [], 0.0
    while (came_s := came_s + rng.expovariate(rate_per_s)) < until_s:
        model, cost_tokens, allowed_s = make()
        job = Job(model, Doubling(1, 1, cost_tokens), cost_tokens, came_s + allowed_s)
        waiters.append(Waiter(came_s, job))
    return waiters


CPU_NODE_S, GPU_NODE_S = 20e-6, 0.5e-6  # passes cost by the node, or by the pass


@pytest.mark.parametrize(
    ("load", "node_s", "allowed_s"),
    [
        (0.5, CPU_NODE_S, (0.1,)),
        (2.0, CPU_NODE_S, (2.0,)),
        (2.0, CPU_NODE_S, (0.1,)),
        (2.0, CPU_NODE_S, (0.1, 0.3, 2.0)),
        (2.0, GPU_NODE_S, (0.1,)),
        (2.0, GPU_NODE_S, (0.05, 0.2, 2.0)),
        (6.0, CPU_NODE_S, (0.1,)),
    ],
)
def test_under_any_load_what_the_engine_does_is_done_in_time(
    load: float, node_s: float, allowed_s: tuple[float, ...]
) -> None:
    rng, clock = random.Random(7), Clock()

    def seconds(nodes: int, jobs: int) -> float:
        return (node_s * nodes + 4e-3 + JOB_S * jobs) * rng.gauss(1.0, 0.05)

    model = DoublingModel("a", clock, seconds)
    scheduler = engine(clock, budget=4000, max_tokens=16 * 4000)
    capacity_per_s = 10 / (node_s * 4000 + 4e-3 + JOB_S * 10)  # ten of 400 nodes fill a pass
    rate_per_s, until_s = load * capacity_per_s, 1500 / capacity_per_s
    waiters = arrivals(
        rng, rate_per_s, until_s, lambda: (model, rng.randint(200, 600), rng.choice(allowed_s))
    )
    Simulation(scheduler, clock, [model]).run(waiters)
    outcomes = [waiter.outcome for waiter in waiters]
    done_per_s = outcomes.count("done") / max(clock.now_s, until_s)
    assert done_per_s > 0.9 * min(load, 1.0) * capacity_per_s
    # What cannot be served is told so at once, but for some that a tighter deadline goes before.
    assert outcomes.count("late") < (0.1 if len(allowed_s) > 1 else 0.02) * len(outcomes)


def test_under_twice_the_load_several_models_are_served_alike() -> None:
    rng, clock = random.Random(7), Clock()
    served = models(clock, 3)
    scheduler = engine(clock, budget=BUDGET, max_tokens=16 * BUDGET)
    capacity_per_s = 5 / pass_s(BUDGET, 5)  # five of 200 nodes fill a pass
    waiters = arrivals(
        rng, 2.0 * capacity_per_s, 3.0, lambda: (rng.choice(served), rng.randint(100, 300), 0.2)
    )
    Simulation(scheduler, clock, served).run(waiters)
    done = {
        model.name: sum(waiter.outcome == "done" for waiter in waiters if waiter.job.model is model)
        for model in served
    }
    assert sum(done.values()) / clock.now_s > 0.9 * capacity_per_s
    assert min(done.values()) > 0.75 * max(done.values())
