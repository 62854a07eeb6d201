"""How a blocking caller waits no longer than it can. Knows nothing of requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Callable[[], Any], Callable[[Any], None]]
_Jobs = SimpleQueue[_Job | None]
_KEPT_S = 5.0


class Workers:
    """Threads for what a caller may stop waiting for; as many as there are callers at once.

    They are kept for some seconds: a new thread is 0.1 ms, and has to wait for its first turn
    where all cores are busy.
    """

    def __init__(self) -> None:
        self._idle: list[_Jobs] = []

    def within(self, work: Callable[[], T], timeout_s: float) -> T:
        """What some work comes to; if it takes longer, it is left to its thread.

        Nothing else bounds the look-up of a name. Where no thread can be had, as while the
        interpreter ends, it is done here and takes the time that it takes.

        Raises:
            TimeoutError: it takes longer.
        """
        results: SimpleQueue[T] = SimpleQueue()
        in_context = partial(copy_context().run, work)  # who traces httpx finds the caller's span
        try:
            jobs = self._idle.pop()
        except IndexError:
            jobs = SimpleQueue()
            try:
                threading.Thread(target=self._serve, args=(jobs,), daemon=True).start()
            except RuntimeError:
                return work()
        jobs.put((in_context, results.put))
        try:
            return results.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError("no answer in time") from None

    def close(self) -> None:
        """End those that have nothing to do."""
        while self._idle:
            self._idle.pop().put(None)

    def _serve(self, jobs: _Jobs) -> None:
        while (job := self._next(jobs)) is not None:
            work, tell = job
            result = work()
            self._idle.append(jobs)  # before its caller knows, who may come again at once
            tell(result)
            del job, work, tell, result  # nobody's lists are kept

    def _next(self, jobs: _Jobs) -> _Job | None:
        try:
            return jobs.get(timeout=_KEPT_S)
        except Empty:
            try:
                self._idle.remove(jobs)
            except ValueError:  # it has been taken at this very moment
                return jobs.get()
            return None
