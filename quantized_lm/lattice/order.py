"""Topological numbers for states that come in any order. Knows no scores and no words."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

States = NDArray[np.int64]


def topological_order(src: States, dst: States, count: int) -> States:
    """A number for each state so that every arc goes up; numbers that do so already are kept.

    Args:
        src, dst: (E,) states, 0 to count - 1.

    Returns:
        (count,) the new number of each state, or -1 for those on a cycle or behind one.
    """
    if bool((src < dst).all()):
        return np.arange(count)
    targets = dst[np.argsort(src, kind="stable")].tolist()
    starts = np.searchsorted(np.sort(src), np.arange(count + 1)).tolist()
    missing = np.bincount(dst, minlength=count).tolist()
    ready = [state for state in range(count) if not missing[state]]
    order = np.full(count, -1)
    number = 0
    while ready:  # the lowest first, so that the order of the source is kept where it can be
        state = heapq.heappop(ready)
        order[state] = number
        number += 1
        for target in targets[starts[state] : starts[state + 1]]:
            missing[target] -= 1
            if not missing[target]:
                heapq.heappush(ready, target)
    return order


def arc_on_cycle(src: States, dst: States, order: States) -> int:
    """Index of an arc of a cycle, given `topological_order` with a state that has no number."""
    into = {
        int(dst[arc]): int(arc) for arc in np.flatnonzero((order[src] < 0) & (order[dst] < 0))[::-1]
    }
    state = next(iter(into))
    seen: set[int] = set()
    while state not in seen:  # backwards: each state without a number has such a predecessor
        seen.add(state)
        state = int(src[into[state]])
    return into[state]
