"""The engine: what shares a forward pass, and that every waiter is answered once."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from service import pass_plan
from service.admission import QueueLimits
from service.errors import DrainingError, NotReadyError
from service.jobs import Completed, Job, Ticket
from service.lost_work import LostWork
from service.metrics import Metrics
from service.scheduler import GRACE_S, Scheduler
from tests.service.engine_fakes import (
    Clock,
    Doubling,
    DoublingModel,
    engine,
    job,
    run,
    sample,
    search,
)

Answer = Future[Completed[int] | None]


def result(future: Answer) -> int | None:
    """What a future that is done came to; None if it was given up."""
    completed = future.result(0)
    return completed.result if completed else None


def test_queued_work_of_one_model_shares_a_pass_up_to_the_budget() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    futures = scheduler.submit([job(model, number, 4) for number in (1, 2, 3)])
    run(scheduler)
    assert [result(future) for future in futures] == [2, 4, 6]
    assert model.passes == [("a", [1, 2]), ("a", [3])]


def test_work_is_taken_in_between_two_waves_and_leaves_as_soon_as_it_is_over() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    (long,) = scheduler.submit([job(model, 1, waves=4)])
    scheduler.step()
    (short,) = scheduler.submit([job(model, 2)])
    scheduler.step()
    assert (short.done(), long.done()) == (True, False)
    run(scheduler)
    assert (result(short), result(long)) == (4, 2)
    assert [sorted(numbers) for _, numbers in model.passes] == [[1], [1, 2], [1], [1]]


@pytest.mark.parametrize("poison", [-1, -2])
def test_of_a_failed_pass_only_the_piece_at_fault_fails(poison: int) -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    first, failing, second = scheduler.submit(
        [job(model, 1, waves=2), job(model, poison), job(model, 2)]
    )
    run(scheduler)
    assert isinstance(failing.exception(0), ValueError)
    assert (result(first), result(second)) == (2, 4)
    assert model.passes == [("a", [1, poison, 2]), *[("a", [1])] * 2, ("a", [poison]), ("a", [2])]


def test_after_a_failed_pass_a_piece_begins_anew_and_is_still_given_up_when_late() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    whole, late = scheduler.submit([job(model, 1, waves=3), job(model, 2, waves=9, by_s=9.0)])
    scheduler.step()
    (failing,) = scheduler.submit([job(model, -1)])
    model.during[4] = lambda: setattr(model.clock, "now_s", 9.0)
    run(scheduler)
    assert isinstance(failing.exception(0), ValueError)
    assert (result(whole), result(late)) == (2, None)
    passes = [numbers for _, numbers in model.passes]
    assert [sorted(numbers) for numbers in passes[:2]] == [[1, 2], [-1, 1, 2]]
    assert sorted(passes[2:]) == [[-1], *[[1]] * 3, *[[2]] * 2]


@pytest.mark.parametrize("method", ["begin", "next_wave", "learn", "result"])
def test_a_piece_that_fails_fails_alone(method: str) -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    failing = Job(model, Doubling(2, fails_in=method), 1, 1e3)
    first, second, third = scheduler.submit([job(model, 1, waves=2), failing, job(model, 3)])
    run(scheduler)
    assert isinstance(second.exception(0), KeyError)
    assert (result(first), result(third)) == (2, 6)


def test_a_pass_is_put_together_without_going_through_a_long_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, looked_at = DoublingModel(), list[object]()
    ticket_of = pass_plan._ticket

    def looked(entry: pass_plan.Entry) -> Ticket[Any]:
        looked_at.append(entry)
        return ticket_of(entry)

    monkeypatch.setattr(pass_plan, "_ticket", looked)
    scheduler = engine(model.clock)
    scheduler.submit([job(model, number, 5) for number in range(500)])
    scheduler.step()
    assert model.passes == [("a", [0, 1])]
    assert 0 < len(looked_at) < 20


def test_what_is_over_is_handed_out_before_the_rest_of_its_pass_is_run() -> None:
    model = DoublingModel(ample_nodes=1, seconds=lambda _nodes, _pieces: 1e-3)
    scheduler = engine(model.clock)
    (longest,) = scheduler.submit([search(model, 9, by_s=50.0)])
    scheduler.step()
    futures = scheduler.submit([job(model, number) for number in (1, 2)])
    done: list[list[bool]] = []
    model.during |= {
        number: lambda: done.append([future.done() for future in futures]) for number in (2, 3, 4)
    }
    scheduler.step()
    assert [numbers for _, numbers in model.passes] == [[9], [1], [2], [9]]
    assert done == [[False, False], [True, False], [True, True]]
    assert not longest.done()
    completed = [future.result(0) for future in futures]
    assert [one.finished_s for one in completed if one] == pytest.approx([2e-3, 3e-3])


def test_who_was_answered_when_a_pass_failed_is_not_run_again() -> None:
    model = DoublingModel(ample_nodes=2)
    scheduler = engine(model.clock)
    first, goes_on, failing, last = scheduler.submit(
        [job(model, 1), job(model, 2, waves=2), job(model, -1), job(model, 3)]
    )
    run(scheduler)
    assert isinstance(failing.exception(0), ValueError)
    assert [result(future) for future in (first, goes_on, last)] == [2, 4, 6]
    passes = [numbers for _, numbers in model.passes]
    assert passes == [[1, 2], [-1, 3], [-1], [3], [2]]


def test_a_job_whose_waiter_left_is_not_run() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    left, stayed, *rest = scheduler.submit([job(model, number, 5) for number in (1, 2, 3, 4)])
    assert all(future.cancel() for future in (left, *rest))
    run(scheduler)
    assert result(stayed) == 4
    assert model.passes == [("a", [2])]
    with pytest.raises(CancelledError):
        left.result(0)


def test_a_job_whose_waiter_leaves_is_dropped_between_two_waves() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    left, stayed = scheduler.submit([job(model, 1, waves=9), job(model, 2, waves=3)])
    model.during[2] = left.cancel
    run(scheduler)
    assert result(stayed) == 4
    assert model.passes == [*[("a", [1, 2])] * 2, ("a", [2])]


def test_a_waiter_that_leaves_during_a_failing_pass_breaks_nothing() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    left, stayed = scheduler.submit([job(model, 1), job(model, -1)])
    model.during[1] = left.cancel
    run(scheduler)
    assert isinstance(stayed.exception(0), ValueError)
    (after,) = scheduler.submit([job(model, 5)])
    run(scheduler)
    assert result(after) == 10


def test_a_search_is_stopped_once_before_the_pass_that_would_end_late() -> None:
    model = DoublingModel(seconds=lambda _nodes, _pieces: 1.0)
    scheduler = engine(model.clock)
    for _ in range(40):  # until it is known what a pass takes
        scheduler.submit([job(model, 9)])
        run(scheduler)
    late = search(model, 1, by_s=model.clock() + 3.5)
    futures = scheduler.submit([late, job(model, 2, waves=5)])
    run(scheduler)
    assert late.work.stops == ["deadline"]  # type: ignore[attr-defined]
    assert [result(future) for future in futures] == [2, 4]
    assert [sorted(numbers) for _, numbers in model.passes[40:]] == [*[[1, 2]] * 3, [2], [2]]
    answered_s = [completed.finished_s for future in futures if (completed := future.result(0))]
    assert answered_s == [43.0, 45.0]


def test_work_that_is_late_between_two_waves_is_given_up() -> None:
    model = DoublingModel(seconds=lambda _nodes, _pieces: 1.0)
    scheduler = engine(model.clock)
    (late,) = scheduler.submit([job(model, 1, waves=9, by_s=2.0)])
    run(scheduler)
    assert result(late) is None
    assert len(model.passes) == 2


@pytest.mark.parametrize("make", [job, search])
def test_work_that_is_late_when_its_turn_comes_runs_no_pass(make: type) -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    (future,) = scheduler.submit([make(model, 1, by_s=4.0)])
    model.clock.now_s = 5.0
    run(scheduler)
    assert result(future) is None
    assert model.passes == []
    assert scheduler._in_hand == []  # or what it holds would live on, a model that is gone too


def test_a_job_runs_on_the_model_it_was_prepared_for_and_the_old_one_is_freed() -> None:
    clock = Clock()
    old, new = DoublingModel(clock=clock), DoublingModel(clock=clock)
    scheduler = engine(clock)
    futures = scheduler.submit([job(old, 1, waves=2), job(new, 2)])
    run(scheduler)
    assert [result(future) for future in futures] == [2, 4]
    assert {*map(str, old.passes)}.isdisjoint(map(str, new.passes))
    gone = weakref.ref(old)
    del old, futures
    gc.collect()
    assert gone() is None


def test_a_job_above_the_budget_is_our_own_bug() -> None:
    model = DoublingModel()
    with pytest.raises(ValueError, match="bug"):
        engine(model.clock).submit([job(model, 1, 11)])


def test_a_result_says_when_its_passes_ran() -> None:
    model = DoublingModel(clock=Clock(1.0), seconds=lambda _nodes, _pieces: 2.0)
    scheduler = engine(model.clock)
    (future,) = scheduler.submit([job(model, 1)])
    run(scheduler)
    assert future.result(0) == Completed(2, 1.0, 3.0)


def test_the_queue_gauges_follow_the_queue() -> None:
    metrics, model = Metrics(), DoublingModel()
    scheduler = Scheduler(limits=QueueLimits(10, 9, 99), metrics=metrics, clock=model.clock)
    (left, _) = scheduler.submit([job(model, 1, 4), job(model, 2, 3)])
    model.clock.now_s = 7.0

    def gauges() -> list[float]:
        names = "rescore_queue_requests", "rescore_queue_tokens"
        age_s = sample(metrics, "rescore_queue_age_seconds")
        return [*(sample(metrics, name, model="a") for name in names), age_s]

    assert gauges() == [2.0, 7.0, 7.0]
    assert sample(metrics, "rescore_predicted_wait_seconds") > 0.0
    left.cancel()
    run(scheduler)
    assert gauges() == [0.0, 0.0, 0.0]
    assert sample(metrics, "rescore_predicted_wait_seconds") == 0.0


def test_every_forward_pass_is_measured() -> None:
    metrics, model = Metrics(), DoublingModel()
    scheduler = Scheduler(limits=QueueLimits(10, 9, 99), metrics=metrics, clock=model.clock)
    scheduler.submit([job(model, 1, 4, waves=2), job(model, 2, 3)])
    run(scheduler)
    assert sample(metrics, "rescore_batch_sequences_count", model="a") == 2.0
    assert sample(metrics, "rescore_batch_sequences_sum", model="a") == 3.0
    assert sample(metrics, "rescore_batch_tokens_sum", model="a") == 11.0


def test_stop_finishes_what_is_queued_and_then_refuses() -> None:
    model, opened = DoublingModel(), threading.Event()
    model.during[1] = lambda: opened.wait(10)
    scheduler = engine(model.clock)
    futures = scheduler.submit([job(model, number, 10, waves=2) for number in (1, 2, 3)])
    scheduler.start()
    stopping = threading.Thread(target=scheduler.stop)
    stopping.start()
    while scheduler.is_alive:
        pass
    with pytest.raises(DrainingError):
        scheduler.submit([job(model, 4)])
    opened.set()
    stopping.join()
    assert [result(future) for future in futures] == [2, 4, 6]
    assert not scheduler.is_alive
    assert not scheduler.has_died


def test_stop_with_a_limit_answers_whoever_still_waits() -> None:
    model, opened = DoublingModel(), threading.Event()
    entered = threading.Event()

    def hold() -> None:
        entered.set()
        opened.wait(10)

    model.during[1] = hold
    scheduler = engine(model.clock)
    futures = scheduler.submit([job(model, number, 10) for number in (1, 2)])
    scheduler.start()
    entered.wait(10)
    scheduler.stop(0.0)
    assert all(isinstance(future.exception(0), DrainingError) for future in futures)
    opened.set()  # the engine finds that both are answered
    scheduler.stop()
    assert len(model.passes) == 1


def test_if_the_engine_thread_dies_every_waiter_is_told_and_nothing_more_is_taken() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    futures = scheduler.submit([job(model, number, 10) for number in (1, 2)])

    def die() -> None:
        raise SystemExit

    model.during[1] = die
    scheduler.start()
    assert all(isinstance(future.exception(10), NotReadyError) for future in futures)
    with pytest.raises(NotReadyError):
        scheduler.submit([job(model, 3)])
    assert scheduler.has_died
    assert not scheduler.is_alive
    scheduler.stop()


def test_what_is_in_hand_when_the_thread_dies_is_answered_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)

    def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(scheduler, "_begun", die)
    (future,) = scheduler.submit([job(model, 1)])
    scheduler.start()
    assert isinstance(future.exception(10), NotReadyError)
    scheduler.stop()


@pytest.mark.anyio
async def test_a_canceled_request_leaves_the_queue_at_once() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock, max_requests=1)
    scheduler.submit([job(model, 9)])
    scheduler.step()
    waiting = asyncio.create_task(scheduler.scored([job(model, 1), job(model, 2)]))
    await asyncio.sleep(0)
    assert scheduler.predicted_wait_s() > 0.0
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert scheduler.predicted_wait_s() == 0.0
    assert not scheduler.step()


@pytest.mark.anyio
async def test_the_rest_of_a_request_that_failed_is_dropped() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    failing = Job(model, Doubling(1, fails_in="learn"), 1, 1e3)
    waiting = asyncio.create_task(scheduler.scored([failing, job(model, 2, waves=99)]))
    await asyncio.sleep(0)
    scheduler.step()
    with pytest.raises(KeyError):
        await asyncio.wait_for(waiting, 10.0)
    run(scheduler)
    assert len(model.passes) == 1


@pytest.mark.anyio
async def test_a_waiter_is_answered_at_its_deadline_whatever_the_engine_is_at() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    in_time = job(model, 1, 10, by_s=0.0 + GRACE_S)
    waiting = asyncio.create_task(scheduler.scored([in_time, job(model, 2, 10, by_s=GRACE_S)]))
    await asyncio.sleep(0)
    scheduler.step()  # the first is done, and the engine goes no further
    first, second = await waiting
    assert first
    assert first.result == 2
    assert second is None
    assert not scheduler.step()


@pytest.mark.anyio
async def test_what_was_done_without_a_result_is_told() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    late = [job(model, 1, 10, by_s=GRACE_S), job(model, 2, 10, by_s=GRACE_S)]
    left = [job(model, 3, 4, waves=9), job(model, 4, 2)]
    failed = Job(model, Doubling(5, 1, 3, fails_in="learn"), 3, 1e3)
    for jobs, steps, nodes, unanswered in (
        *((late, 1, 0, 10), (late, 0, 0, 0)),
        *((left, 2, 4 + 4, 2), ([failed], 1, 3, 0)),
    ):
        lost = LostWork()
        waiting = asyncio.create_task(scheduler.scored(jobs, lost))
        await asyncio.sleep(0)
        for _ in range(steps):
            scheduler.step()
        if jobs is left:
            waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (lost.tree_nodes, lost.unanswered["a"]) == (nodes, unanswered), jobs
        run(scheduler)
    assert sample(scheduler._metrics, "rescore_tokens_total", model="a", kind="lost") == 11.0


@pytest.mark.anyio
async def test_a_request_without_jobs_waits_for_nothing() -> None:
    assert await engine(Clock()).scored([]) == []


@pytest.mark.anyio
async def test_a_waiter_is_woken_once_all_of_its_jobs_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    waiting = asyncio.create_task(scheduler.scored([job(model, 1), job(model, 2, waves=2)]))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    woken: list[object] = []
    wake = loop.call_soon_threadsafe

    def counted(*args: Any) -> asyncio.Handle:
        woken.append(args)
        return wake(*args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    scheduler.step()
    assert not woken
    run(scheduler)
    assert len(woken) == 1
    done = await waiting
    assert [one.result for one in done if one] == [2, 4]
