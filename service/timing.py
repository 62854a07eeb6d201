"""Where the time of one request went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from service.jobs import Completed
from service.metrics import Metrics
from service.schemas import Timing

STAGES = ("queue", "tokenize", "forward", "combine")


class Stopwatch:
    """Consecutive stages of one request.

    Args:
        clock: seconds, monotonic; the scheduler's own.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s = self._lap_s = clock()
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def lap(self, stage: str) -> None:
        """End a stage that began where the last one ended."""
        now_s = self._clock()
        self._seconds[stage] += now_s - self._lap_s
        self._lap_s = now_s

    def lap_engine(self, completed: Sequence[Completed[Any] | None]) -> None:
        """End the wait for the engine.

        Queue lasts until the first pass began, forward until the last one ended. A wait of which
        nothing came was all in the queue.
        """
        now_s = self._clock()
        began_s = [done.started_s for done in completed if done]
        ended_s = [done.finished_s for done in completed if done]
        if began_s:
            self._seconds["queue"] += max(min(began_s) - self._lap_s, 0.0)
            self._seconds["forward"] += max(ended_s) - min(began_s)
        else:
            self._seconds["queue"] += now_s - self._lap_s
        self._lap_s = now_s

    def finish(self, metrics: Metrics) -> Timing:
        """Report every stage, and observe it once the answer is sent."""
        metrics.once_sent(self._observe, metrics)
        return {
            "queue_ms": _ms(self._seconds["queue"]),
            "tokenize_ms": _ms(self._seconds["tokenize"]),
            "forward_ms": _ms(self._seconds["forward"]),
            "combine_ms": _ms(self._seconds["combine"]),
            "total_ms": _ms(self._clock() - self._started_s),
        }

    def _observe(self, metrics: Metrics) -> None:
        for stage, seconds in self._seconds.items():
            metrics.observe_stage(stage, seconds)


def server_timing(timing: Timing) -> str:
    """The stages as a Server-Timing header."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={ms}" for name, ms in timing.items())


def _ms(seconds: float) -> float:
    return round(1000.0 * seconds, 3)
