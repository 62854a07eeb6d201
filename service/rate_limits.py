"""Token buckets: how much a caller may have per second, paid before or after it is known."""

from __future__ import annotations

import math
from collections.abc import Callable

BURST_S = 1.0  # a bucket holds what one second brings, and no less than one


class TokenBucket:
    """Fills at a steady rate. What is taken may exceed what is there: the rest is owed.

    So the cost of a request may be taken once it is known, after the work; who owes has to wait.

    Args:
        per_s: tokens that come in per second.
        clock: seconds, monotonic.
    """

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._capacity = max(per_s * BURST_S, 1.0)
        self._level = self._capacity
        self._clock = clock
        self._filled_s = clock()

    @property
    def per_s(self) -> float:
        """Tokens that come in per second."""
        return self._per_s

    def retry_after_s(self) -> int | None:
        """Whole seconds until something may be taken, 1 or more; None if it may be now."""
        now_s = self._clock()
        self._level = min(self._level + (now_s - self._filled_s) * self._per_s, self._capacity)
        self._filled_s = now_s
        if self._level > 0.0:
            return None
        return max(math.ceil(-self._level / self._per_s), 1)

    def take(self, tokens: float) -> None:
        """Take tokens, there or not."""
        self._level -= tokens
