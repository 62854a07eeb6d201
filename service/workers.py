"""Threads for the steps that would keep the event loop, and a bound on who waits for them.

Threads share one interpreter, so a few do as much as many, and leave more of it to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from service.errors import DeadlineExceededError, OverloadedError
from service.metrics import OTHER_MODEL, Metrics

Args = ParamSpec("Args")
Done = TypeVar("Done")


@dataclass(frozen=True)
class WorkerLimits:
    """What may be in hand at once, waiting or worked on: requests, and bytes of their bodies.

    One request may always be, whatever its size.
    """

    max_requests: int
    max_bytes: int


class Workers:
    """Some threads for one kind of work.

    Args:
        name: of the threads. num_threads: how many at most.
        limits: of what has a place.
        metrics: where refusals are counted.
        clock: seconds, monotonic; that of deadlines.
    """

    def __init__(
        self,
        name: str,
        num_threads: int,
        limits: WorkerLimits,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._num_requests = 0
        self._num_bytes = 0

    @contextlib.contextmanager
    def place(self, size_bytes: int) -> Iterator[None]:
        """Be one of those whose work is in hand. Only the event loop may ask.

        Raises:
            OverloadedError: there is no place.
        """
        limits = self._limits
        num_bytes = self._num_bytes + size_bytes
        if self._num_requests and (
            self._num_requests >= limits.max_requests or num_bytes > limits.max_bytes
        ):
            self._metrics.shed.labels(OTHER_MODEL, "queue_full").inc()
            raise OverloadedError(
                f"{self._num_requests} requests of {self._num_bytes} bytes are being read; at most "
                f"{limits.max_requests} of {limits.max_bytes} may be; send it again in 1 s, or to "
                "another server",
                retry_after_s=1,
            )
        self._num_requests += 1
        self._num_bytes += size_bytes
        try:
            yield
        finally:
            self._num_requests -= 1
            self._num_bytes -= size_bytes

    async def run(
        self, step: Callable[Args, Done], *args: Args.args, **kwargs: Args.kwargs
    ) -> Done:
        """What a step comes to; one that nobody waits for any more is not begun."""
        held: list[Callable[[], Done]] = [functools.partial(step, *args, **kwargs)]
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, _run, held)
        finally:
            held.clear()  # the executor keeps what was canceled until a thread comes to it

    async def run_by(
        self, by_s: float, step: Callable[Args, Done], *args: Args.args, **kwargs: Args.kwargs
    ) -> Done:
        """The same by a time on the clock; a step that has begun goes on for nobody.

        Raises:
            DeadlineExceededError: it is not done by then.
        """
        running = self.run(step, *args, **kwargs)
        try:
            return await asyncio.wait_for(running, max(by_s - self._clock(), 0.0))
        except asyncio.TimeoutError:
            raise DeadlineExceededError("the deadline passed before the request was read") from None

    def stop(self) -> None:
        """Begin nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Threads:
    """All of one app.

    Attributes:
        lists: the steps of long lists and texts.
        lattices: reading lattices and getting them ready.
        replies: what is done for a lattice after its search, which must not wait for reading.
    """

    lists: Workers
    lattices: Workers
    replies: Workers

    def stop(self) -> None:
        """Begin nothing more."""
        for workers in (self.lists, self.lattices, self.replies):
            workers.stop()


def start_threads(
    lists: WorkerLimits,
    lattices: WorkerLimits,
    metrics: Metrics,
    clock: Callable[[], float] = time.perf_counter,
) -> Threads:
    """Threads that begin with their first work."""
    return Threads(
        lists=Workers("lists", 2, lists, metrics, clock),
        lattices=Workers("lattices", 2, lattices, metrics, clock),
        replies=Workers("replies", 1, lattices, metrics, clock),
    )


def _run(held: list[Callable[[], Done]]) -> Done:
    return held.pop()()
