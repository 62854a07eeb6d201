"""Threads for steps of requests: who has a place, and what is not begun."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator

import pytest

from service.errors import DeadlineExceededError, OverloadedError
from service.metrics import Metrics
from service.workers import WorkerLimits, Workers

pytestmark = pytest.mark.anyio


class Gate:
    """A step that takes until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        self.opened.wait(30.0)
        return "done"


@pytest.fixture
def workers() -> Iterator[Workers]:
    one = Workers("test", 1, WorkerLimits(max_requests=2, max_bytes=10), Metrics(), lambda: 5.0)
    yield one
    one.stop()


def test_places_are_bounded_by_requests_and_by_bytes(workers: Workers) -> None:
    for first, second, fits in ((99, 0, False), (6, 4, True), (6, 5, False), (0, 99, False)):
        with workers.place(first):
            if fits:
                with workers.place(second), pytest.raises(OverloadedError), workers.place(0):
                    pass
            else:
                with pytest.raises(OverloadedError), workers.place(second):
                    pass
    with workers.place(99):  # one alone may be as large as it likes
        pass


async def test_a_step_that_is_late_is_given_up_and_not_begun_if_it_was_not(
    workers: Workers,
) -> None:
    gate = Gate()
    begun: list[int] = []
    running = asyncio.create_task(workers.run(gate))
    await asyncio.to_thread(gate.entered.wait, 30.0)
    for by_s in (5.01, 4.0):
        with pytest.raises(DeadlineExceededError):
            await workers.run_by(by_s, begun.append, 1)
    gate.opened.set()
    assert await running == "done"
    assert await workers.run_by(35.0, lambda: 2) == 2
    assert begun == []


async def test_what_nobody_waits_for_is_freed_though_no_thread_has_come_to_it(
    workers: Workers,
) -> None:
    gate, held = Gate(), Metrics()
    running = asyncio.create_task(workers.run(gate))
    await asyncio.to_thread(gate.entered.wait, 30.0)
    waiting = asyncio.create_task(workers.run(id, held))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    known = weakref.ref(held)
    del held, waiting
    assert known() is None
    gate.opened.set()
    await running
