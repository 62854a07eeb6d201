"""One HTTP/1.1 connection that sends one request at a time. Counts nothing.

The parser is httptools, which uvicorn has too: httpx takes a millisecond of a core for a request,
about as much as the server does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

clock = time.perf_counter


@dataclass(slots=True)
class Answer:
    """What came back.

    Attributes:
        done_s: when the last byte was there, on `clock`.
        status: 0 if the connection ended first.
        timing: the Server-Timing header, "" without one.
    """

    done_s: float
    status: int = 0
    timing: str = ""
    body: bytes = b""


@dataclass(slots=True)
class _Incoming:
    timing: str = ""
    parts: list[bytes] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """Answers go to `on_answer`; a connection that is lost answers with status 0."""

    def __init__(self) -> None:
        self.on_answer: Callable[[Answer], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._incoming = _Incoming()

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, content: bytes, on_answer: Callable[[Answer], None]) -> None:
        """Send the first bytes of a request; `more` sends the others."""
        self.on_answer = on_answer
        self.more(content)

    def more(self, content: bytes) -> None:
        """Send further bytes."""
        if self._transport is not None:
            self._transport.write(content)

    def hang_up(self) -> None:
        """Close without waiting; nothing is answered any more."""
        self.on_answer = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.connection_lost(None)

    def connection_lost(self, _: Exception | None) -> None:
        """The connection is gone; whoever waits is told."""
        self._give(Answer(clock()))
        if self._transport is not None:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of an answer."""
        if name.lower() == b"server-timing":
            self._incoming.timing = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._incoming.parts.append(body)

    def on_message_complete(self) -> None:
        """The answer is complete."""
        status = self._parser.get_status_code()
        keeps = self._parser.should_keep_alive()
        incoming, self._incoming = self._incoming, _Incoming()
        if not keeps and self._transport is not None:
            self._transport.close()
        self._give(Answer(clock(), status, incoming.timing, b"".join(incoming.parts)))

    def _give(self, answer: Answer) -> None:
        if self.on_answer is not None:
            on_answer, self.on_answer = self.on_answer, None
            on_answer(answer)


def authority(host: str, port: int) -> str:
    """As in a URL and the header Host, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Connections:
    """Kept-alive connections to one address; there is always one more.

    Args:
        host, port: where to.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[Connection] = []

    @property
    def host(self) -> str:
        """As a Host header has it."""
        return authority(self._host, self._port)

    def take(self) -> Connection | None:
        """One that is open and idle, the last used first."""
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        return None

    async def open(self) -> Connection:
        """A new one.

        Raises:
            OSError: nobody listens.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        return connection

    def give_back(self, connection: Connection) -> None:
        """An idle one, for the next request."""
        if connection.is_open:
            self._idle.append(connection)

    def close(self) -> None:
        """Close those that are idle."""
        for connection in self._idle:
            connection.hang_up()
        self._idle.clear()
