"""Connections, and who uses them. Knows nothing of requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

import httpx

from quantized_lm.errors import InputError
from service.client.settings import ClientSettings

T = TypeVar("T")


class Pool(Generic[T]):
    """A client of httpx, which whoever is done with it last has to close.

    A socket must not be closed under a thread that reads from it: its number may be another's by
    the time that thread is told.

    Attributes:
        http: the client.
    """

    def __init__(self, http: T) -> None:
        self.http = http
        self._lock = threading.Lock()
        self._users = 0
        self._is_retired = False

    def enter(self) -> None:
        """Use it."""
        with self._lock:
            self._users += 1

    def leave(self) -> bool:
        """Use it no more; whether it is to be closed."""
        with self._lock:
            self._users -= 1
            return self._is_retired and not self._users

    def retire(self) -> bool:
        """Have it closed by its last user; whether there is none."""
        with self._lock:
            self._is_retired = True
            return not self._users


@contextmanager
def in_turn(turns: threading.Semaphore, timeout_s: float) -> Iterator[None]:
    """Use a connection while few enough others do, so that nobody waits for one in httpcore.

    Who waits there may be given one just as the wait times out, and leaves it in use for good.

    Raises:
        TimeoutError: too many do until then.
    """
    if not turns.acquire(timeout=timeout_s):
        raise TimeoutError("no connection was free in time")
    try:
        yield
    finally:
        turns.release()


def maker(
    given: Callable[[], T] | None,
    default: Callable[..., T],
    settings: ClientSettings,
) -> Callable[[], T]:
    """What makes connections.

    Raises:
        InputError: what was given makes nothing.
    """
    if given is None:
        most = settings.max_connections
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        # The certificates of the authorities take 15 ms to load: once for all homes.
        authorities = httpx.create_ssl_context(trust_env=False)
        return partial(default, verify=authorities, limits=limits, trust_env=False)
    if not callable(given):
        kind = type(given).__name__
        raise InputError(
            f"transport is a {kind}; need what makes one, as lambda: httpx.{kind}(...)"
        )
    return given
