"""What a client has done, for the decoder's own metrics."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Stats:
    """Counts since the client was made, or since this process was forked.

    Attributes:
        calls: of rescore, rescore_lattice and score that were well formed.
        answered: of them, those that the service answered.
        retries: attempts after the first of a call.
        fallbacks: reason -> calls that got the decoder's own list back.
        refused: calls that raised RefusedRequestError after they were sent.
    """

    calls: int = 0
    answered: int = 0
    retries: int = 0
    fallbacks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    refused: int = 0


class Counts:
    """Counts that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: Counter[str] = Counter()
        self._fallbacks: Counter[str] = Counter()

    def add(self, event: str) -> None:
        """Count one event, named as the field of `Stats`."""
        with self._lock:
            self._events[event] += 1

    def add_fallback(self, reason: str) -> int:
        """Count one call that got the decoder's own list back; how many for this reason so far."""
        with self._lock:
            self._fallbacks[reason] += 1
            return self._fallbacks[reason]

    def snapshot(self) -> Stats:
        """All of them at one moment."""
        with self._lock:
            fallbacks = MappingProxyType(dict(self._fallbacks))
            return Stats(fallbacks=fallbacks, **self._events)
