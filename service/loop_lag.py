"""How far the event loop is behind its work.

A request is seen only when the loop comes to read it, and an answer goes out when it comes to write
it. To the client that is time too, and under overload it is the part that no stage shows.
"""

from __future__ import annotations

import asyncio
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
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._clock = clock

    async def watch(self) -> None:
        """Sleep and see how much later than asked the loop wakes up; for ever."""
        while True:
            due_s = self._clock() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self.seconds = max(self._clock() - due_s, FADING * self.seconds, 0.0)
