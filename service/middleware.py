"""What is done to every request: an id, a size limit on the body, a count and a duration."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, UnsupportedMediaTypeError
from service.metrics import OTHER_MODEL, Metrics

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
JSON = "application/json"
IDENTITY = "identity"
UNKNOWN_ROUTE = "unknown"
CLIENT_GONE = 499  # what nobody reads; nginx's number


class Envelope:
    """ASGI middleware around one request.

    Args:
        app: what answers.
        metrics: where requests are counted.
        max_body_bytes: a body larger than this raises BodyTooLargeError where it is read.
        body_bytes_of: path -> the same for a route with a limit of its own.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        max_body_bytes: int,
        body_bytes_of: Mapping[str, int] = MappingProxyType({}),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._body_bytes_of = body_bytes_of
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = self._clock()
        request_id = _request_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, self._limited(scope, receive), send_with_id)
        finally:
            self._measure(scope, status, self._clock() - started_s)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        declared = Headers(scope=scope).get("content-length", "")
        limit = self._body_bytes_of.get(
            scope["path"].removeprefix(scope.get("root_path", "")), self._max_body_bytes
        )
        size_bytes = 0

        async def receive_limited() -> Message:
            nonlocal size_bytes
            if declared.isdecimal() and int(declared) > limit:
                raise BodyTooLargeError(f"the body has {declared} bytes; need {limit} or fewer")
            message = await receive()
            size_bytes += len(message.get("body", b""))
            if size_bytes > limit:
                raise BodyTooLargeError(f"the body has more than {limit} bytes; need that or fewer")
            return message

        return receive_limited

    def _measure(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        model = scope["state"].get("model", OTHER_MODEL)
        self._metrics.requests.labels(route, model, _outcome(status)).inc()
        self._metrics.request_duration.labels(route, model).observe(seconds)


def _outcome(status: int) -> str:
    if status == CLIENT_GONE:
        return "canceled"
    return "ok" if status < 400 else "invalid" if status < 500 else "error"


def _request_id(given: str) -> str:
    """The client's id if it is 1 to 128 printable ASCII characters, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def is_plain_json(headers: Headers) -> bool:
    """Whether the headers say that the body is plain JSON."""
    return media_type_of(headers) == JSON and encoding_of(headers) == IDENTITY


async def require_json(request: Request) -> None:
    """Refuse a body that is not plain JSON before it is looked at.

    Raises:
        UnsupportedMediaTypeError: Content-Type or Content-Encoding says so.
    """
    media_type = media_type_of(request.headers)
    if media_type != JSON:
        raise UnsupportedMediaTypeError(
            f"Content-Type is {media_type or 'absent'!r}; need application/json"
        )
    encoding = encoding_of(request.headers)
    if encoding != IDENTITY:
        raise UnsupportedMediaTypeError(f"Content-Encoding is {encoding!r}; need identity")


def media_type_of(headers: Headers) -> str:
    """The Content-Type without parameters; "" where it is absent."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def encoding_of(headers: Headers) -> str:
    """The Content-Encoding."""
    return headers.get("content-encoding", IDENTITY).strip().lower()
