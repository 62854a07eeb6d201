"""What is done to every request: an id, a bound on its body, a count and a duration."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import UnsupportedMediaTypeError
from service.logs import REQUEST, RequestIds, RequestLog, call_id_of, request_id_of
from service.loop_lag import LoopLag
from service.metrics import OTHER_MODEL, Metrics
from service.request_bodies import BodyLimits, HeldBodies, RequestBody

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from service.spans import RequestSpans

JSON = "application/json"
IDENTITY = "identity"
UNKNOWN_ROUTE = "unknown"
TRACED_PATHS = "/v1/"
CLIENT_GONE = 499  # what nobody reads; nginx's number
OUTCOMES = {429: "overloaded", CLIENT_GONE: "canceled", 504: "deadline"}


@dataclass(frozen=True)
class Observers:
    """What is told of each request beside the metrics, or has to be known of its time.

    Attributes:
        log: writes a line for some.
        spans: traces them, if anything does.
        lag: of the event loop; a request came that much earlier than it was read, and its answer
            will go out that much later.
    """

    log: RequestLog = field(default_factory=RequestLog)
    spans: RequestSpans | None = None
    lag: LoopLag = field(default_factory=LoopLag)


class Envelope:
    """ASGI middleware around one request.

    Args:
        app: what answers.
        metrics: where requests are counted.
        bodies: how large they may be.
        routes: of the app, for requests that are refused before it chooses one.
        observers: what else is told of each request, and sees to the event loop.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        bodies: BodyLimits,
        routes: Sequence[Route] = (),
        observers: Observers | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._metrics = metrics
        observers = observers or Observers()
        self._log, self._spans, self._lag = observers.log, observers.spans, observers.lag
        self._bodies = bodies
        self._held = HeldBodies(bodies.held_bytes, metrics)
        self._routes = routes
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = self._clock()
        headers = Headers(scope=scope)
        request_id, call_id = request_id_of(headers), call_id_of(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["received_s"] = started_s - 2 * self._lag.of_request_s()
        span = self._span(scope, headers)
        REQUEST.set(RequestIds(request_id, self._trace_id(span)))
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                told["X-Request-ID"] = request_id
                if call_id is not None:
                    told["X-Call-ID"] = call_id
            await send(message)

        body = self._body(scope, headers, receive)
        try:
            await self._app(scope, body.receive, send_with_id)
        finally:
            body.let_go()
            self._measure(scope, status, self._clock() - started_s, span)

    def _body(self, scope: Scope, headers: Headers, receive: Receive) -> RequestBody:
        limit = self._bodies.of_path.get(inner_path(scope), self._bodies.usual)
        return RequestBody(headers, receive, limit, self._held)

    def _span(self, scope: Scope, headers: Headers) -> Span | None:
        """Probes and scrapes come by the clock, and nobody looks for their traces."""
        if self._spans is None or not inner_path(scope).startswith(TRACED_PATHS):
            return None
        return self._spans.begin(headers)

    def _trace_id(self, span: Span | None) -> str:
        return "" if self._spans is None or span is None else self._spans.trace_id(span)

    def _route_of(self, scope: Scope) -> str:
        """The path of the route that answered, or would have if the request had been let in."""
        if "route" in scope:
            return getattr(scope["route"], "path", UNKNOWN_ROUTE)
        found = (route.path for route in self._routes if route.matches(scope)[0] is Match.FULL)
        return next(found, UNKNOWN_ROUTE)

    def _measure(self, scope: Scope, status: int, seconds: float, span: Span | None) -> None:
        route = self._route_of(scope)
        model = scope["state"].get("model", OTHER_MODEL)
        self._metrics.requests.labels(route, model, _outcome(status, scope["state"])).inc()
        trace_id = self._trace_id(span)
        exemplar = {"trace_id": trace_id} if trace_id else None
        self._metrics.request_duration.labels(route, model).observe(seconds, exemplar)
        method, state = scope["method"], scope["state"]
        self._log.write(method=method, route=route, status=status, seconds=seconds, state=state)
        if self._spans is not None and span is not None:
            self._spans.end(span, method=method, route=route, status=status, state=state)


def _outcome(status: int, state: Mapping[str, object]) -> str:
    if status < 400:
        return "degraded" if state.get("is_degraded") else "ok"
    return OUTCOMES.get(status, "invalid" if status < 500 else "error")


def inner_path(scope: Scope) -> str:
    """The path of a request without what a proxy or a server puts before all of them."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def require_json(request: Request) -> None:
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
