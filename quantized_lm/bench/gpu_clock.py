"""Times of what a GPU does: recorded once, replayed often, the median kept."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Call = Callable[[], object]
_COPIES = 20  # of a call in one graph, so that starting the graph does not count
_FLUSHED_BYTES = 256 << 20  # more than the second-level cache of any GPU


class Clock:
    """Of one device; without a GPU, calls are timed as they are, once: a rehearsal.

    Args:
        repeats: replays of which the median counts.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._is_cuda = device.type == "cuda"
        self._repeats = repeats
        self._flushed = torch.zeros(
            _FLUSHED_BYTES if self._is_cuda else 0, dtype=torch.int8, device=device
        )

    def warm(self, call: Call) -> float:
        """Seconds of a call that finds its data in cache."""
        if not self._is_cuda:
            return _wall(call)
        graph = _record(call, _COPIES)
        return statistics.median(_events(graph.replay) for _ in range(self._repeats)) / _COPIES

    def cold(self, call: Call) -> float:
        """Seconds of a call after the caches were filled with something else."""
        if not self._is_cuda:
            return _wall(call)
        graph = _record(call, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch finds an empty graph odd
            nothing = _record(lambda: None, 1)
        times = []
        for _ in range(self._repeats):
            self._flushed.zero_()
            empty = _events(nothing.replay)
            self._flushed.zero_()
            times.append(max(_events(graph.replay) - empty, 0.0))
        return statistics.median(times)

    def queued(self, call: Call) -> float:
        """Seconds on the device of a call that starts work there and does not wait for it.

        Calls are made one right after the other, so that the host is ahead of the device.
        """
        if not self._is_cuda:
            return _wall(call)
        many = partial(_repeat, call, _COPIES)
        many()
        return statistics.median(_events(many) for _ in range(self._repeats)) / _COPIES

    def wall(self, call: Call) -> list[float]:
        """Seconds of each of so many calls, by the host's clock; calls wait for their results."""
        if self._is_cuda:
            call()
        return sorted(_wall(call) for _ in range(self._repeats))


def _repeat(call: Call, count: int) -> None:
    for _ in range(count):
        call()


def _wall(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _record(call: Call, copies: int) -> torch.cuda.CUDAGraph:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(copies):
            call()
    graph.replay()
    return graph


def _events(call: Call) -> float:
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
