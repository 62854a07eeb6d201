"""How long a client may take to send a request, how long its head, how many may be connected.

uvicorn waits for the first request of a connection, and for the rest of any, for as long as the
client likes, and as long for an answer to be read. Here a request has a time to come in, an answer
one to be taken, and where there are too many connections the one that has waited longest for a
request is closed in favor of the new one. What is being answered is never closed.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import sys
import termios
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import DrainingError, NotHttpError, problem_response
from service.logs import call_id_of, request_id_of

# Longer than clients keep theirs, so that it is the client who closes: a server that closes first
# does so, sooner or later, while a request is on its way.
KEEP_ALIVE_S = 75
MAX_HEAD_BYTES = 64 << 10  # request line and headers; httptools has no bound of its own


class ConnectionLimits:
    """The bounds of one port, and its connections that wait for a request.

    Args:
        read_timeout_s: from the first byte of a request, or from connecting, to its last byte; who
            takes nothing of an answer for as long, or at most twice, is given up.
        max_connections: open at once.
        count_timeout: called when a connection is closed because a request did not come, or
            nobody took an answer.
        count_refused: called with a reason when one is refused before an app has seen a request.
    """

    def __init__(
        self,
        read_timeout_s: float,
        max_connections: int,
        count_timeout: Callable[[], None],
        count_refused: Callable[[str], None],
    ) -> None:
        self.read_timeout_s = read_timeout_s
        self.max_connections = max_connections
        self.count_timeout = count_timeout
        self.count_refused = count_refused
        self.waiting: dict[BoundedProtocol, None] = {}  # oldest first

    def spare(self) -> BoundedProtocol | None:
        """The connection that has waited longest, if there is one with its answer all sent."""
        idle = (one for one in self.waiting if not one.transport.get_write_buffer_size())
        return next(idle, next(iter(self.waiting), None))


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration of a port whose connections are bounded."""

    def __init__(self, app: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(app, http=BoundedProtocol, timeout_keep_alive=KEEP_ALIVE_S, **options)
        self.limits = limits


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    config: BoundedConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = self.config.limits
        self._timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = math.inf  # when that timer was started
        self._has_begun = False  # whether part of a request is here
        self._has_head = False  # and all of its head
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, at the expense of one that waits if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            spare = self._limits.spare()
            if spare is None:
                self._limits.count_refused("too_many")
                self._end(HTTPException(503, "every connection is in use; send this again"))
                return
            spare.give_way()
        self._limits.waiting[self] = None
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        super().connection_lost(exc)
        self._limits.waiting.pop(self, None)
        self._disarm()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what has come; what is no HTTP is refused, and a head that does not end.

        Not with uvicorn's own, to which any byte ends the time that a connection is kept alive,
        be it of no request or of one that has its answer, and nothing begins it again.
        """
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # the latter of CONNECT
            self._refuse_garbage()
        if self._has_begun and not self._has_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._limits.count_refused("head_too_large")
                detail = f"request line and headers are longer than {MAX_HEAD_BYTES} bytes"
                self._end(HTTPException(431, detail))

    def pause_writing(self) -> None:
        """The client does not take an answer as fast as it is made."""
        super().pause_writing()
        self._watch_sending()

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._has_begun, self._has_head, self._head_bytes = True, False, 0
        if self._timer is None:
            self._arm()

    def on_headers_complete(self) -> None:
        """The head of a request is here, and an app begins to answer."""
        if self.parser.should_upgrade():  # `_feed` has the head parsed again
            return
        super().on_headers_complete()
        self._has_head = True

    def on_message_complete(self) -> None:
        """The last byte of a request is here; it may have its answer already."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._has_begun = False
        self._disarm()
        if not self.cycle.response_complete:
            self._limits.waiting.pop(self, None)
        elif not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """An answer is given; the connection waits again, or for the rest of what was answered."""
        super().on_response_complete()
        if self._has_begun:  # it has the time of a request, and is kept alive from the end of it
            self._unset_keepalive_if_required()
        if self.cycle.response_complete:
            self._limits.waiting[self] = None
        self._watch_sending()

    def give_way(self) -> None:
        """Close in favor of another connection, also if nobody reads what is still to be sent."""
        self._limits.waiting.pop(self, None)
        self._disarm()
        self.transport.abort()

    def turn_away(self) -> None:
        """Say that the server goes away to who is still sending a request."""
        if self._has_begun and not self._is_answered() and not self.transport.is_closing():
            self._end(DrainingError("the server was stopped before this was here; send it again"))

    def _feed(self, data: bytes) -> None:
        """Have what has come parsed, but for offers to upgrade, which a server may pass over.

        To the parser a request with one ends with its head, whatever length that gives the body.
        So the head goes, without the offer, to a new parser, and what follows it after that.

        Raises:
            HttpParserError: it is no HTTP.
            HttpParserUpgrade: it has the method CONNECT.
        """
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as stop:
                head, rest = self._head_without_offer(), rest[stop.args[0] :]
            else:
                return
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            self.parser.feed_data(head)

    def _head_without_offer(self) -> bytes:
        """The head that has just been parsed, but for Upgrade."""
        version = self.parser.get_http_version().encode()
        first = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
        fields = (b": ".join(field) for field in self.headers if field[0] != b"upgrade")
        return b"\r\n".join((first, *fields, b"", b""))

    def _refuse_garbage(self) -> None:
        self.logger.warning("Invalid HTTP request received.")
        self._limits.count_refused("not_http")
        if self._is_answered():
            self.transport.close()
        else:
            self._end(NotHttpError("what came is no HTTP request; need HTTP/1.1, without TLS"))

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self._limits.read_timeout_s, self._on_timeout)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is the app that lets the client wait
            self._arm()
            return
        self._limits.count_timeout()
        if self._has_begun and not self._is_answered():
            limit_s = self._limits.read_timeout_s
            detail = f"the request was not all here after {limit_s:g} s; send it faster"
            self._end(HTTPException(408, detail))
        else:
            self.transport.close()

    def _watch_sending(self) -> None:
        """Give up what is to be sent if the client takes none of it for the time of a request.

        A slow client is not at fault: bytes are counted with those that the kernel holds, which
        asks for more only when a good part of its buffer, of some MB, is free again.
        """
        self._unsent_bytes = math.inf  # they are counted when the timer ends, which few answers see
        if self._send_timer is None and self.transport.get_write_buffer_size():
            self._send_timer = self.loop.call_later(self._limits.read_timeout_s, self._on_unread)

    def _on_unread(self) -> None:
        self._send_timer = None
        if not self.transport.get_write_buffer_size():
            return
        unsent_bytes = self._count_unsent()
        if unsent_bytes < self._unsent_bytes:
            self._watch_sending()
            self._unsent_bytes = unsent_bytes
        else:
            self._limits.count_timeout()
            self.transport.abort()  # `close` would wait for it to be sent

    def _count_unsent(self) -> int:
        """Bytes that the client has not taken."""
        descriptor = self.transport.get_extra_info("socket").fileno()
        in_kernel = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)

    def _is_answered(self) -> bool:
        """Whether the app has an answer already to the request that is still coming in."""
        return self._has_head and self.cycle.response_started

    def _end(self, error: Exception) -> None:
        """Send a problem that no app has seen, and close."""
        scope: Mapping[str, Any] = self.scope if self._has_begun else {}
        headers = Headers(raw=scope.get("headers", []))
        known_id = scope.get("state", {}).get("request_id")  # an app has begun to answer
        response = problem_response(
            error,
            instance=scope.get("path", ""),
            request_id=known_id or request_id_of(headers),
        )
        fields = (
            *self.server_state.default_headers,
            *response.raw_headers,
            (b"connection", b"close"),
        )
        if call_id := call_id_of(headers):
            fields += ((b"x-call-id", call_id.encode()),)
        status = response.status_code
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
        head = (first, *(b": ".join(field) for field in fields), b"", b"")
        self.transport.write(b"\r\n".join(head) + bytes(response.body))
        self.transport.close()
        self._watch_sending()
