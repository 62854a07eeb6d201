"""What belongs to where it is used: a process, an event loop. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Home:
    """A process, or an event loop of it."""

    pid: int
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_gone(self) -> bool:
        """Whether nobody who is here can be there."""
        return self.pid != os.getpid() or (self.loop is not None and self.loop.is_closed())


class Homes(Generic[T]):
    """One thing, made anew at each home that asks for it.

    A forked child finds its parent's sockets, on which both would read, and its parent's locks as
    they stood; connections cannot outlive the event loop that made them. So what was made at a
    home that is gone is neither used nor closed, but let go of: a process that drops its copy of a
    socket tells nobody. Several threads may ask.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[Home, T] = {}

    def at(self, home: Home) -> T:
        """That of this home, for all who ask there."""
        made = self._made.get(home)
        if made is None:
            # No lock, which a child might find taken: `setdefault` and `pop` are one step each.
            made = self._made.setdefault(home, self._make())
            for other in list(self._made):
                if other.is_gone:
                    self._made.pop(other, None)
        return made

    def leave(self, home: Home) -> T | None:
        """That of this home, if there is one; another is made for who asks next."""
        return self._made.pop(home, None)


def this_process() -> Home:
    """Of who asks."""
    return Home(os.getpid())


def this_loop() -> Home:
    """That runs who asks."""
    return Home(os.getpid(), asyncio.get_running_loop())
