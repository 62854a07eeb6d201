"""The engine thread: what shares a forward pass, and that every waiter is answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from quantized_lm.pruning import Wave
from quantized_lm.waves import Scoring
from service.errors import DrainingError
from service.metrics import Metrics
from service.scheduler import Completed, Job, Scheduler


@dataclass
class Doubling:
    """Work that has a number doubled, in one wave or more; it may fail on the way.

    Attributes:
        fails_in: the method that raises.
        stops: what it was stopped for.
    """

    number: int
    waves: int = 1
    fails_in: str = ""
    context: Sequence[int] = ()
    cost_tokens: int = 1
    stops: list[str] = field(default_factory=list)
    can_stop: bool = True

    def begin(self) -> Scoring[int]:
        """Start it."""
        self._try("begin")
        return DoublingScoring(self, self.waves)

    def _try(self, method: str) -> None:
        if method == self.fails_in:
            raise KeyError(method)


@dataclass
class DoublingScoring:
    """The number on its way."""

    work: Doubling
    left: int
    answer: int = 0

    def next_wave(self) -> Wave | None:
        """One node, whose token is the number."""
        self.work._try("next_wave")
        node = np.array([self.work.number], np.int32)
        return Wave(node * 0, node) if self.left else None

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Count the wave."""
        self.work._try("learn")
        self.left -= 1
        self.answer = int(log_prob[0])

    def stop(self, cut: str) -> None:
        """Be over, if it can."""
        self.work.stops.append(cut)
        self.left = 0 if self.work.can_stop else self.left

    def result(self) -> int:
        """Twice the number."""
        self.work._try("result")
        return self.answer


class Recorder:
    """Stands for all models: doubles numbers, and holds the engine while `gate` is clear.

    Attributes:
        during: what happens in each pass, by its number.
    """

    vocab_size = 8
    max_tokens = 8

    def __init__(self) -> None:
        self.model = ""
        self.batches: list[tuple[str, list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.during: dict[int, Callable[[], object]] = {}

    def __call__(self, model: str) -> Recorder:
        self.model = model
        return self

    def new_state(self, context: Sequence[int] = ()) -> Sequence[int]:
        """Nothing that counts."""
        return context

    def extend(
        self,
        states: Sequence[object],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Twice each token; -1 fails, and -2 loses an answer."""
        assert len(states) == len(parents)
        self.entered.set()
        self.gate.wait()
        numbers = [int(token[0]) for token in tokens]
        self.batches.append((self.model, numbers))
        self.during.pop(len(self.batches), int)()
        if -1 in numbers:
            raise ValueError("minus one")
        return [np.array([2 * number], np.float32) for number in numbers if number != -2]


def job(model: str, number: int, cost_tokens: int = 1, waves: int = 1) -> Job[int]:
    """A number to double."""
    return Job(model, Doubling(number, waves), cost_tokens)


@contextmanager
def engine(run: Recorder, budget_tokens: int = 10) -> Iterator[Scheduler]:
    """A running scheduler that is busy with job 0 until the gate opens."""
    scheduler = Scheduler(run, budget_tokens=budget_tokens, metrics=Metrics())
    scheduler.start()
    run.gate.clear()
    scheduler.submit([job("a", 0)])
    run.entered.wait()
    yield scheduler
    run.gate.set()
    scheduler.stop()


def test_queued_work_of_one_model_shares_a_batch_up_to_the_budget() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        futures = scheduler.submit([job("a", number, 4) for number in (1, 2, 3)])
        run.gate.set()
        assert [future.result().result for future in futures] == [2, 4, 6]
    assert run.batches == [("a", [0]), ("a", [1, 2]), ("a", [3])]


def test_work_of_another_model_waits_for_its_own_batch() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        scheduler.submit([job("a", 1), job("b", 2), job("a", 3)])
        run.gate.set()
    assert run.batches == [("a", [0]), ("a", [1, 3]), ("b", [2])]


def test_nothing_overtakes_a_large_job_of_its_model() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        scheduler.submit([job("a", 1, 6), job("a", 2, 6), job("a", 3)])
        run.gate.set()
    assert run.batches == [("a", [0]), ("a", [1]), ("a", [2, 3])]


def test_work_is_taken_in_between_two_waves_and_leaves_as_soon_as_it_is_over() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        (long,) = scheduler.submit([job("a", 1, waves=4)])
        short: list[Future[Completed[int]]] = []
        was_done: list[bool] = []
        run.during[2] = lambda: short.extend(scheduler.submit([job("a", 2)]))
        run.during[4] = lambda: was_done.extend([short[0].done(), long.done()])
        run.gate.set()
        assert long.result().result == 2
        assert short[0].result().result == 4
    assert run.batches == [("a", [0]), ("a", [1]), ("a", [1, 2]), ("a", [1]), ("a", [1])]
    assert was_done == [True, False]


def test_what_runs_keeps_its_share_of_the_budget() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        (first,) = scheduler.submit([job("a", 1, 6, waves=2)])
        run.during[2] = lambda: scheduler.submit([job("a", 2, 5), job("a", 3, 4)])
        run.gate.set()
        first.result()
    assert run.batches == [("a", [0]), ("a", [1]), ("a", [1]), ("a", [2, 3])]


def test_the_oldest_job_of_another_model_is_next_however_much_comes_for_this_one() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        (first,) = scheduler.submit([job("a", 1, waves=3)])
        run.during[2] = lambda: scheduler.submit([job("b", 2), job("a", 3)])
        run.gate.set()
        first.result()
    assert run.batches == [*[("a", [0])], *[("a", [1])] * 3, ("b", [2]), ("a", [3])]


@pytest.mark.parametrize("poison", [-1, -2])
def test_a_failed_pass_fails_every_job_in_it_and_none_after(poison: int) -> None:
    run = Recorder()
    with engine(run) as scheduler:
        failing = scheduler.submit([job("a", 1), job("a", poison), job("a", 2)])
        run.gate.set()
        assert all(isinstance(future.exception(), ValueError) for future in failing)
        (after,) = scheduler.submit([job("a", 5)])
        assert after.result().result == 10


@pytest.mark.parametrize("method", ["begin", "next_wave", "learn", "result"])
def test_a_piece_that_fails_fails_alone(method: str) -> None:
    run = Recorder()
    with engine(run) as scheduler:
        failing = Job("a", Doubling(2, fails_in=method), 1)
        first, second, third = scheduler.submit([job("a", 1, waves=2), failing, job("a", 3)])
        run.gate.set()
        assert isinstance(second.exception(), KeyError)
        assert (first.result().result, third.result().result) == (2, 6)
        assert scheduler.is_alive


def test_a_job_whose_waiter_left_is_not_run() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        left, stayed, *rest = scheduler.submit([job("a", number, 5) for number in (1, 2, 3, 4)])
        assert all(future.cancel() for future in (left, *rest))
        run.gate.set()
        assert stayed.result().result == 4
        with pytest.raises(CancelledError):
            left.result()
    assert run.batches == [("a", [0]), ("a", [2])]


def test_a_job_whose_waiter_leaves_is_dropped_between_two_waves() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        left, stayed = scheduler.submit([job("a", 1, waves=9), job("a", 2, waves=3)])
        run.during[3] = left.cancel
        run.gate.set()
        assert stayed.result().result == 4
    assert run.batches == [*[("a", [0])], *[("a", [1, 2])] * 2, ("a", [2])]


def test_a_waiter_that_leaves_during_a_failing_pass_breaks_nothing() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        left, stayed = scheduler.submit([job("a", 1), job("a", -1)])
        run.during[2] = left.cancel
        run.gate.set()
        assert isinstance(stayed.exception(), ValueError)
        assert scheduler.submit([job("a", 5)])[0].result().result == 10


@pytest.mark.parametrize("can_stop", [True, False])
def test_late_work_is_stopped_once_and_the_rest_goes_on(can_stop: bool) -> None:
    run, now_s = Recorder(), [0.0]
    late = Doubling(1, waves=9, can_stop=can_stop)
    scheduler = Scheduler(run, budget_tokens=9, metrics=Metrics(), clock=lambda: now_s[0])
    run.during[2] = lambda: now_s.__setitem__(0, 2.0)
    futures = scheduler.submit([Job("a", late, 1, deadline_s=2.0), job("a", 2, waves=3)])
    scheduler.start()
    assert [future.result().result for future in futures] == [2, 4]
    scheduler.stop()
    assert late.stops == ["deadline"]
    assert len(run.batches) == (3 if can_stop else 9)
    assert futures[0].result().finished_s == 2.0


def test_work_that_is_late_when_it_is_taken_in_runs_no_pass() -> None:
    run = Recorder()
    scheduler = Scheduler(run, budget_tokens=9, metrics=Metrics(), clock=lambda: 5.0)
    (future,) = scheduler.submit([Job("a", Doubling(1), 1, deadline_s=4.0)])
    scheduler.start()
    assert future.result().result == 0
    scheduler.stop()
    assert run.batches == []


def test_stop_finishes_what_is_queued_and_then_refuses() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        futures = scheduler.submit([job("a", number, 10, waves=2) for number in (1, 2, 3)])
        stopping = threading.Thread(target=scheduler.stop)
        stopping.start()
        while scheduler.is_alive:
            pass
        with pytest.raises(DrainingError):
            scheduler.submit([job("a", 4)])
        run.gate.set()
        stopping.join()
        assert [future.result(0).result for future in futures] == [2, 4, 6]
    assert not scheduler.is_alive


def test_a_job_above_the_budget_is_our_own_bug() -> None:
    with engine(Recorder()) as scheduler, pytest.raises(ValueError, match="bug"):
        scheduler.submit([job("a", 1, 11)])


def test_a_result_says_when_its_passes_ran() -> None:
    ticks = iter([1.0, 3.0])
    scheduler = Scheduler(Recorder(), budget_tokens=1, metrics=Metrics(), clock=lambda: next(ticks))
    scheduler.start()
    (future,) = scheduler.submit([job("a", 1)])
    assert (future.result().started_s, future.result().finished_s) == (1.0, 3.0)
    scheduler.stop()


@pytest.mark.anyio
async def test_a_canceled_request_leaves_the_queue() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        waiting = asyncio.create_task(scheduler.scored([job("a", 1), job("b", 2)]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        run.gate.set()
    assert run.batches == [("a", [0])]


@pytest.mark.anyio
async def test_the_rest_of_a_request_that_failed_is_dropped() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        failing = Job("a", Doubling(1, fails_in="learn"), 1)
        waiting = asyncio.create_task(scheduler.scored([failing, job("a", 2, waves=99_999)]))
        await asyncio.sleep(0)
        run.gate.set()
        with pytest.raises(KeyError):
            await waiting
    assert len(run.batches) < 99_999


def test_the_queue_gauges_return_to_zero() -> None:
    metrics, run = Metrics(), Recorder()
    scheduler = Scheduler(run, budget_tokens=10, metrics=metrics)
    scheduler.submit([job("a", 1, 4), job("a", 2, 3)])
    gauges = "rescore_queue_requests", "rescore_queue_tokens"
    values = [metrics.registry.get_sample_value(gauge, {"model": "a"}) for gauge in gauges]
    assert values == [2.0, 7.0]
    scheduler.start()
    scheduler.stop()
    values = [metrics.registry.get_sample_value(gauge, {"model": "a"}) for gauge in gauges]
    assert values == [0.0, 0.0]


def test_every_forward_pass_is_measured() -> None:
    metrics, run = Metrics(), Recorder()
    scheduler = Scheduler(run, budget_tokens=10, metrics=metrics)
    scheduler.submit([job("a", 1, 4, waves=2), job("a", 2, 3)])
    scheduler.start()
    scheduler.stop()
    for name in ("rescore_batch_sequences", "rescore_batch_tokens"):
        value = metrics.registry.get_sample_value
        assert value(f"{name}_count", {"model": "a"}) == 2.0
        assert value(f"{name}_sum", {"model": "a"}) == 3.0
