"""A metrics registry that may be told late, but before anybody looks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric


class LateRegistry(CollectorRegistry):
    """A registry for an event loop that had better send an answer before it counts it.

    Metrics are a twentieth of what a caller waits for beside the engine.
    """

    def __init__(self) -> None:
        super().__init__()
        self._late: deque[Callable[[], None]] = deque()

    def later(self, count: Callable[[], None]) -> None:
        """Count something after this turn of the loop, at whose end it sends."""
        self._late.append(count)
        asyncio.get_running_loop().call_soon(self._catch_up)

    def collect(self) -> Iterable[Metric]:
        """Every metric, with all that was to be counted."""
        self._catch_up()
        return super().collect()

    def _catch_up(self) -> None:
        while self._late:
            self._late.popleft()()
