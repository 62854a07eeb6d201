"""The engine thread: what shares a batch, and that every waiter is answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager

import pytest

from service.errors import DrainingError
from service.metrics import Metrics
from service.scheduler import Job, Scheduler


class Recorder:
    """Stands for the model: doubles numbers, and holds the engine while `gate` is clear."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, model: str, items: Sequence[int]) -> list[int]:
        self.entered.set()
        self.gate.wait()
        self.batches.append((model, list(items)))
        if -1 in items:
            raise ValueError("minus one")
        return [2 * item for item in items if item != -2]


@contextmanager
def engine(run: Recorder, budget_tokens: int = 10) -> Iterator[Scheduler[int, int]]:
    """A running scheduler that is busy with job 0 until the gate opens."""
    scheduler = Scheduler(run, budget_tokens=budget_tokens, metrics=Metrics())
    scheduler.start()
    run.gate.clear()
    scheduler.submit([Job("a", 0, 1)])
    run.entered.wait()
    yield scheduler
    run.gate.set()
    scheduler.stop()


def test_queued_work_of_one_model_shares_a_batch_up_to_the_budget() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        futures = scheduler.submit([Job("a", item, 4) for item in (1, 2, 3)])
        run.gate.set()
        assert [future.result().result for future in futures] == [2, 4, 6]
    assert run.batches == [("a", [0]), ("a", [1, 2]), ("a", [3])]


def test_work_of_another_model_waits_for_its_own_batch() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        scheduler.submit([Job("a", 1, 1), Job("b", 2, 1), Job("a", 3, 1)])
        run.gate.set()
    assert run.batches == [("a", [0]), ("a", [1, 3]), ("b", [2])]


def test_nothing_overtakes_a_large_job_of_its_model() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        scheduler.submit([Job("a", 1, 6), Job("a", 2, 6), Job("a", 3, 1)])
        run.gate.set()
    assert run.batches == [("a", [0]), ("a", [1]), ("a", [2, 3])]


@pytest.mark.parametrize("poison", [-1, -2])
def test_a_failed_batch_fails_every_job_in_it_and_none_after(poison: int) -> None:
    run = Recorder()
    with engine(run) as scheduler:
        failing = scheduler.submit([Job("a", 1, 1), Job("a", poison, 1), Job("a", 2, 1)])
        run.gate.set()
        assert all(isinstance(future.exception(), ValueError) for future in failing)
        (after,) = scheduler.submit([Job("a", 5, 1)])
        assert after.result().result == 10


def test_a_job_whose_waiter_left_is_not_run() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        left, stayed, *rest = scheduler.submit([Job("a", item, 5) for item in (1, 2, 3, 4)])
        assert all(future.cancel() for future in (left, *rest))
        run.gate.set()
        assert stayed.result().result == 4
        with pytest.raises(CancelledError):
            left.result()
    assert run.batches == [("a", [0]), ("a", [2])]


def test_stop_finishes_what_is_queued_and_then_refuses() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        futures = scheduler.submit([Job("a", item, 10) for item in (1, 2, 3)])
        stopping = threading.Thread(target=scheduler.stop)
        stopping.start()
        while scheduler.is_alive:
            pass
        with pytest.raises(DrainingError):
            scheduler.submit([Job("a", 4, 1)])
        run.gate.set()
        stopping.join()
        assert [future.result(0).result for future in futures] == [2, 4, 6]
    assert not scheduler.is_alive


def test_a_job_above_the_budget_is_our_own_bug() -> None:
    with engine(Recorder()) as scheduler, pytest.raises(ValueError, match="bug"):
        scheduler.submit([Job("a", 1, 11)])


def test_a_result_says_when_its_batch_ran() -> None:
    ticks = iter([1.0, 3.0])
    scheduler = Scheduler[int, int](
        Recorder(), budget_tokens=1, metrics=Metrics(), clock=lambda: next(ticks)
    )
    scheduler.start()
    (future,) = scheduler.submit([Job("a", 1, 1)])
    assert (future.result().started_s, future.result().finished_s) == (1.0, 3.0)
    scheduler.stop()


@pytest.mark.anyio
async def test_a_canceled_request_leaves_the_queue() -> None:
    run = Recorder()
    with engine(run) as scheduler:
        waiting = asyncio.create_task(scheduler.scored([Job("a", 1, 1), Job("b", 2, 1)]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        run.gate.set()
    assert run.batches == [("a", [0])]


def test_the_queue_gauges_return_to_zero() -> None:
    metrics, run = Metrics(), Recorder()
    scheduler = Scheduler(run, budget_tokens=10, metrics=metrics)
    scheduler.submit([Job("a", 1, 4), Job("a", 2, 3)])
    gauges = "rescore_queue_requests", "rescore_queue_tokens"
    values = [metrics.registry.get_sample_value(gauge, {"model": "a"}) for gauge in gauges]
    assert values == [2.0, 7.0]
    scheduler.start()
    scheduler.stop()
    values = [metrics.registry.get_sample_value(gauge, {"model": "a"}) for gauge in gauges]
    assert values == [0.0, 0.0]
