"""How long a client may take to send a request, how long its head, how many may be connected.

uvicorn waits for the first request of a connection, and for the rest of any, for as long as the
client likes. Here a request has a time to come in, and where there are too many connections the one
that has waited longest for a request is closed in favor of the new one. What is being answered is
never closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import DrainingError, NotHttpError, problem_response
from service.logs import request_id_of

# Longer than clients keep theirs, so that it is the client who closes: a server that closes first
# does so, sooner or later, while a request is on its way.
KEEP_ALIVE_S = 75
MAX_HEAD_BYTES = 64 << 10  # request line and headers; httptools has no bound of its own


class ConnectionLimits:
    """The bounds of one port, and its connections that wait for a request.

    Args:
        read_timeout_s: from the first byte of a request, or from connecting, to its last byte.
        max_connections: open at once.
        count_timeout: called when a connection is closed because a request did not come.
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
        self._has_begun = False  # whether part of a request is here
        self._has_head = False  # and all of its head
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, at the expense of one that waits if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            oldest = next(iter(self._limits.waiting), None)
            if oldest is None:
                self._limits.count_refused("too_many")
                self._end(HTTPException(503, "every connection is in use; send this again"))
                return
            oldest.give_way()
        self._limits.waiting[self] = None
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        super().connection_lost(exc)
        self._limits.waiting.pop(self, None)
        self._disarm()

    def data_received(self, data: bytes) -> None:
        """Take what has come; a head that does not end is refused."""
        super().data_received(data)
        if self._has_begun and not self._has_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._limits.count_refused("head_too_large")
                detail = f"request line and headers are longer than {MAX_HEAD_BYTES} bytes"
                self._end(HTTPException(431, detail))

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's
        """Refuse what is no HTTP; uvicorn would in plain text."""
        self._limits.count_refused("not_http")
        if self._is_answered():
            self.transport.close()
        else:
            self._end(NotHttpError("what came is no HTTP request; need HTTP/1.1, without TLS"))

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        super().on_message_begin()
        self._has_begun, self._has_head, self._head_bytes = True, False, 0
        if self._timer is None:
            self._arm()

    def on_headers_complete(self) -> None:
        """The head of a request is here, and an app begins to answer."""
        super().on_headers_complete()
        self._has_head = True

    def on_message_complete(self) -> None:
        """The last byte of a request is here."""
        super().on_message_complete()
        self._has_begun = False
        self._limits.waiting.pop(self, None)
        self._disarm()

    def on_response_complete(self) -> None:
        """An answer is sent; the connection waits again."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._limits.waiting[self] = None

    def give_way(self) -> None:
        """Close in favor of another connection."""
        self._limits.waiting.pop(self, None)
        self._disarm()
        self.transport.close()

    def turn_away(self) -> None:
        """Say that the server goes away to who is still sending a request."""
        if self._has_begun and not self._is_answered() and not self.transport.is_closing():
            self._end(DrainingError("the server was stopped before this was here; send it again"))

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
        status = response.status_code
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
        head = (first, *(b": ".join(field) for field in fields), b"", b"")
        self.transport.write(b"\r\n".join(head) + bytes(response.body))
        self.transport.close()
