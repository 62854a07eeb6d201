"""When to leave a service alone. Knows failures and time, nothing of HTTP."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class CircuitBreaker:
    """Open after some failures in a row; a probe that succeeds closes it again.

    A failure right after that opens it at once, as a service may be ready and still not answer.
    Several threads may use one.
    """

    def __init__(self, *, failures_to_open: int, open_s: float, clock: Callable[[], float]) -> None:
        self._failures_to_open = failures_to_open
        self._open_s = open_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_s: float | None = None
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are to be answered without the service."""
        return self._opened_s is not None

    def succeed(self) -> None:
        """The service has answered."""
        with self._lock:
            if self._opened_s is not None:
                logger.info("the service answers again; it is asked from now on")
            self._failures, self._opened_s = 0, None

    def fail(self) -> None:
        """A call found the service away, late or senseless."""
        with self._lock:
            self._failures += 1
            if self._opened_s is None and self._failures >= self._failures_to_open:
                logger.warning(
                    "the service failed %d calls in a row; it is left alone for %g s",
                    self._failures,
                    self._open_s,
                )
                self._opened_s = self._clock()

    def take_probe(self) -> bool:
        """Whether the service is due to be probed, by whoever asks first."""
        with self._lock:
            if self._opened_s is None or self._is_probing:
                return False
            self._is_probing = self._clock() - self._opened_s >= self._open_s
            return self._is_probing

    def end_probe(self, *, is_ready: bool) -> None:
        """What the probe found."""
        with self._lock:
            self._is_probing = False
            if self._opened_s is None:
                return
            if is_ready:
                logger.info("the service is ready again; it is asked from now on")
                self._opened_s, self._failures = None, self._failures_to_open - 1
            else:
                self._opened_s = self._clock()
