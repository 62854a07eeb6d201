"""How large a body may be, and how much of all bodies is held at once.

A body is held from its first byte until its request is answered. What it declares is counted before
any of it is read, so that who is refused has sent nothing for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from service.errors import BodyTooLargeError, OverloadedError
from service.metrics import OTHER_MODEL, Metrics

LARGEST_AT_ONCE = 4  # bodies of the largest size that are held
FREE_BYTES = 64 << 10  # a body of no more than that is not counted: the server reads as far ahead


@dataclass(frozen=True)
class BodyLimits:
    """How large a body may be.

    Attributes:
        usual: bytes; a larger one raises BodyTooLargeError where it is read.
        of_path: the same for routes with a limit of their own.
    """

    usual: int
    of_path: Mapping[str, int] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        """Of all bodies at once."""
        return LARGEST_AT_ONCE * max(self.usual, *self.of_path.values(), 0)


class HeldBodies:
    """Counts the bytes of all bodies that are held. Only the event loop may ask.

    Args:
        max_bytes: of all together.
        metrics: where refusals are counted.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._metrics = metrics

    def take(self, num_bytes: int) -> None:
        """Count some more.

        Raises:
            OverloadedError: there is no room for them; none is counted.
        """
        if self.num_bytes + num_bytes > self._max_bytes:
            self._metrics.shed.labels(OTHER_MODEL, "bodies_full").inc()
            raise OverloadedError(
                f"bodies of {self.num_bytes} bytes are held, and this one would add {num_bytes}; "
                f"at most {self._max_bytes} may be; send it again in 1 s, or to another server",
                retry_after_s=1,
            )
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Count some no longer."""
        self.num_bytes -= num_bytes


class RequestBody:
    """The body of one request as it comes in.

    Args:
        headers: of the request. receive: of its server.
        limit: bytes it may have.
        held: where it is counted until `let_go` is called, which has to be once.
    """

    def __init__(self, headers: Headers, receive: Receive, limit: int, held: HeldBodies) -> None:
        declared = headers.get("content-length", "")
        self._declared_bytes = int(declared) if declared.isdecimal() else 0
        self._receive = receive
        self._limit = limit
        self._held = held
        self._size_bytes = 0
        self._counted_bytes = 0

    async def receive(self) -> Message:
        """The next part of it, or that the client is gone.

        Raises:
            BodyTooLargeError: it is, or says that it will be.
            OverloadedError: it finds no room beside all that are held.
        """
        declared, limit = self._declared_bytes, self._limit
        if declared > limit:
            raise BodyTooLargeError(f"the body has {declared} bytes; need {limit} or fewer")
        self._count(declared)
        message = await self._receive()
        self._size_bytes += len(message.get("body", b""))
        if self._size_bytes > limit:
            raise BodyTooLargeError(f"the body has more than {limit} bytes; need that or fewer")
        self._count(self._size_bytes)
        return message

    def let_go(self) -> None:
        """Say that it is held no longer."""
        self._held.give_back(self._counted_bytes)

    def _count(self, size_bytes: int) -> None:
        if size_bytes > max(self._counted_bytes, FREE_BYTES):
            self._held.take(size_bytes - self._counted_bytes)
            self._counted_bytes = size_bytes
