"""OpenTelemetry spans of requests. The only file that needs the extra `otel`.

A span says which model, how much work and how long; never what was said.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

STAGES = ("tokenize", "queue", "forward", "combine")  # in the order a request goes through them
SEARCH = "search"  # what forward is for a lattice
MS = 1_000_000  # nanoseconds
SHUTDOWN_S = 2.0  # the SDK would try for 30 s, which is all that an orchestrator grants


class _HeaderGetter(Getter[Headers]):
    """Reads `traceparent` and `tracestate` from a request."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        """Every value of a header."""
        return carrier.getlist(key) or None

    def keys(self, carrier: Headers) -> list[str]:
        """The names of the headers."""
        return carrier.keys()


class RequestSpans:
    """Makes one server span per request, and one span within it per stage.

    Args:
        provider: samples, and exports what has ended.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("secondpass")
        self._propagator = TraceContextTextMapPropagator()
        self._getter = _HeaderGetter()

    def begin(self, headers: Headers) -> Span:
        """The span of a request that has just begun; it continues the client's trace."""
        return self._tracer.start_span(
            "request",
            context=self._propagator.extract(headers, getter=self._getter),
            kind=SpanKind.SERVER,
        )

    def end(
        self, span: Span, *, method: str, route: str, status: int, state: Mapping[str, Any]
    ) -> None:
        """End the span of a request.

        Args:
            span: what `begin` returned.
            method: of the request.
            route: the path's template.
            status: of the answer.
            state: what the route left behind: `model`, `timing`, `usage`, `replied_ns`.
        """
        if span.is_recording():
            span.update_name(f"{method} {route}")
            span.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                }
            )
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            if "timing" in state:
                self._describe(span, state)
        span.end()

    def trace_id(self, span: Span) -> str:
        """The trace of a span in hexadecimal; empty if it is not sampled: nobody would find it."""
        context = span.get_span_context()
        return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""

    def shutdown(self) -> None:
        """Export what has ended and stop; a collector that does not answer is not waited for."""
        thread = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        thread.start()
        thread.join(SHUTDOWN_S)

    def _describe(self, span: Span, state: Mapping[str, Any]) -> None:
        """Add the work and the stages; these follow one another and end with the reply."""
        usage, timing = state["usage"], state["timing"]
        span.set_attributes(
            {
                "rescore.model": state["model"],
                "rescore.hypotheses": usage.get("hypotheses", usage.get("sequences", 0)),
                "rescore.tokens": usage.get("tokens", usage["tree_nodes"]),
                "rescore.tree_nodes": usage["tree_nodes"],
                "rescore.degraded": bool(state.get("is_degraded", False)),
            }
        )
        within = set_span_in_context(span)
        at_ns = state["replied_ns"] - int(timing["total_ms"] * MS)
        for stage in STAGES:
            name = SEARCH if stage == "forward" and "arcs" in usage else stage
            child = self._tracer.start_span(name, context=within, start_time=at_ns)
            at_ns += int(timing[f"{stage}_ms"] * MS)
            child.end(at_ns)
