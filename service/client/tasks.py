"""How an asynchronous caller waits no longer than it can. Knows nothing of requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_GRACE_S = 0.1
_CANCELED_S = 1.0


class Tasks:
    """Tasks for what a caller may stop waiting for: so many at a time, in the order of the callers.

    All on one event loop.

    Args:
        most: at a time.
    """

    def __init__(self, most: int) -> None:
        # No asyncio.Semaphore: up to Python 3.10.7 it stays locked for good where a caller is
        # canceled as its turn comes (python/cpython#90155).
        self._free = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left: set[asyncio.Task[Any]] = set()

    async def within(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        """What some work comes to; if it takes longer, or who waits is canceled, it is left alone.

        It is not begun for who has gone before the turn came.

        Raises:
            TimeoutError: it takes longer, the wait for its turn included.
        """
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        await self._take_turn(timeout_s)
        task = loop.create_task(work())
        task.add_done_callback(self._end_turn)  # also of one that is canceled before it begins
        try:
            await asyncio.wait({task}, timeout=max(ends_s - loop.time(), 0.0))
        finally:
            if not task.done():
                self._left.add(task)
                task.add_done_callback(self._left.discard)
        if not task.done():
            raise TimeoutError("no answer in time")
        return task.result()

    async def close(self) -> None:
        """End those that nobody waits for: by themselves if they can, else by being canceled."""
        await self._let_end(_GRACE_S)
        for task in self._left:
            task.cancel()
        await self._let_end(_CANCELED_S)

    async def _let_end(self, timeout_s: float) -> None:
        if self._left:
            await asyncio.wait(set(self._left), timeout=timeout_s)

    async def _take_turn(self, timeout_s: float) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait({turn}, timeout=timeout_s)
        except asyncio.CancelledError:
            if not turn.cancel():  # it has come at this very moment
                self._end_turn()
            raise
        if turn.cancel():
            raise TimeoutError("no connection was free in time")

    def _end_turn(self, _: object = None) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1
