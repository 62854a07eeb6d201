"""A blocking caller's wait, and what is left behind when it is over."""

from __future__ import annotations

import contextvars
import threading
from functools import partial

import pytest

from service.client.pool import Pool
from service.client.time_left import TimeLeft
from service.client.workers import Workers


def test_a_phase_has_what_the_phases_before_it_left() -> None:
    now_s = 10.0
    timeouts = TimeLeft(12.0, 0.5, lambda: now_s)
    assert dict(timeouts) == {"connect": 0.5, "pool": 2.0, "read": 2.0, "write": 2.0}
    now_s = 11.75
    assert dict(timeouts) == {"connect": 0.25, "pool": 0.25, "read": 0.25, "write": 0.25}
    now_s = 13.0
    with pytest.raises(TimeoutError):  # nothing is sent for who has gone
        timeouts.get("write")


def test_work_that_takes_longer_is_left_to_its_thread() -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(5)
        has_ended.set()

    with pytest.raises(TimeoutError):
        Workers().within(work, 0.01)
    may_end.set()
    assert has_ended.wait(5)


def test_work_is_done_in_the_callers_context_and_here_where_there_is_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    span = contextvars.ContextVar("span", default="none")
    span.set("caller's")
    assert Workers().within(span.get, 5) == "caller's"
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert Workers().within(threading.current_thread, 5) is threading.current_thread()


def test_one_caller_has_one_thread() -> None:
    workers = Workers()
    threads = {workers.within(threading.current_thread, 5) for _ in range(50)}
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    workers.close()
    threads.pop().join(5)
    assert not workers._idle


def test_a_thread_that_nobody_needs_ends_and_another_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.client.workers._KEPT_S", 0.0)
    workers = Workers()
    for number in range(200):  # now before it ends, now after
        assert workers.within(partial(int, number), 5) == number


def test_connections_in_use_are_closed_by_who_uses_them_last() -> None:
    pool = Pool("connections")
    pool.enter()
    pool.enter()
    assert [pool.leave(), pool.retire(), pool.leave(), pool.retire()] == [False, False, True, True]
