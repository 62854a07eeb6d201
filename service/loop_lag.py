"""How far the event loop is behind its work.

A request is seen only when the loop comes to read it, and an answer goes out when it comes to write
it. To the client that is time too, and under overload it is the part that no stage shows.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

EVERY_S = 0.02
FADING = 0.98  # of a delay, each time that it is not seen again: passes end, and block, all 0.3 s


class LoopLag:
    """Measures it while `watch` runs.

    Args:
        clock: seconds, monotonic.

    Attributes:
        seconds: the largest delay seen lately.
        is_idle: whether nothing waits for the engine; set once there is one.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self.is_idle: Callable[[], bool] = lambda: False
        self._clock = clock
        self._due_s = math.inf

    def of_request_s(self) -> float:
        """How far behind the loop is for a request that is read now.

        Delays come again while there is work, so that of lately counts. Without any it was a stall,
        and it is over: only what came while it lasted has waited.
        """
        return max(self._clock() - self._due_s, 0.0) if self.is_idle() else self.seconds

    async def watch(self) -> None:
        """Sleep and see how much later than asked the loop wakes up; for ever."""
        while True:
            self._due_s = self._clock() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self.seconds = max(self._clock() - self._due_s, FADING * self.seconds, 0.0)
