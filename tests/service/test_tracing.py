"""Traces: one span per request and one per stage; nothing where nothing is configured."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from service import spans
from service.app import create_app
from service.logs import logging_to
from service.routes.lattice import EXAMPLE as LATTICE_EXAMPLE
from service.settings import Settings
from service.spans import RequestSpans
from service.tracing import start_tracing
from tests.fakes import FakeLoader, TableModel, fake_loaded
from tests.service.serving import Json, request, utterance

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Traced:
    """A client of an app, and the spans that the app has ended."""

    def __init__(self, client: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
        self.client = client
        self._exporter = exporter

    def spans(self) -> Sequence[ReadableSpan]:
        """In the order in which they ended."""
        return self._exporter.get_finished_spans()


@contextlib.asynccontextmanager
async def traced(
    model: TableModel | None = None, provider: TracerProvider | None = None
) -> AsyncIterator[Traced]:
    exporter, provider = InMemorySpanExporter(), provider or TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(models=(Path("tiny"),))
    load = FakeLoader(fake_loaded(model=model))
    app = create_app(settings, load=load, spans=RequestSpans(provider))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield Traced(client, exporter)


@pytest.mark.anyio
async def test_a_request_is_one_span_with_its_stages_within() -> None:
    async with traced() as app:
        reply = (await app.client.post("/v1/rescore", json=request())).json()
        *stages, server = app.spans()
    assert (server.name, server.kind) == ("POST /v1/rescore", SpanKind.SERVER)
    assert dict(server.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/rescore",
        "http.response.status_code": 200,
        "rescore.model": "tiny",
        "rescore.hypotheses": 2,
        "rescore.tokens": reply["usage"]["tokens"],
        "rescore.tree_nodes": reply["usage"]["tree_nodes"],
        "rescore.degraded": False,
    }
    assert [stage.name for stage in stages] == ["tokenize", "queue", "forward", "combine"]
    assert server.context is not None
    assert {stage.parent.span_id for stage in stages if stage.parent} == {server.context.span_id}


@pytest.mark.anyio
async def test_stages_follow_one_another_within_the_request_and_last_as_the_reply_says() -> None:
    async with traced() as app:
        timing = (await app.client.post("/v1/rescore", json=request())).json()["timing"]
        *stages, server = app.spans()
    edges = [(stage.start_time or 0, stage.end_time or 0) for stage in stages]
    for (_, end_ns), (start_ns, _) in itertools.pairwise(edges):
        assert end_ns == start_ns
    assert (server.start_time or 0) <= edges[0][0]
    assert edges[-1][1] <= (server.end_time or 0)
    for stage, (start_ns, end_ns) in zip(stages, edges, strict=True):
        assert (end_ns - start_ns) / 1e6 == pytest.approx(timing[f"{stage.name}_ms"], abs=1e-5)


@pytest.mark.anyio
async def test_the_forward_stage_of_a_lattice_is_its_search() -> None:
    async with traced() as app:
        assert (
            await app.client.post("/v1/rescore/lattice", json=LATTICE_EXAMPLE)
        ).status_code == 200
        names = [span.name for span in app.spans()]
    assert names == ["tokenize", "queue", "search", "combine", "POST /v1/rescore/lattice"]


@pytest.mark.anyio
async def test_the_trace_of_the_client_is_continued() -> None:
    async with traced() as app:
        await app.client.post("/v1/rescore", json=request(), headers={"traceparent": TRACEPARENT})
        *_, server = app.spans()
    assert server.context is not None
    assert server.parent is not None
    assert f"{server.context.trace_id:032x}" == TRACE_ID
    assert f"{server.parent.span_id:016x}" == PARENT_ID


@pytest.mark.anyio
async def test_a_trace_that_the_client_does_not_keep_is_not_kept_here() -> None:
    async with traced() as app:
        headers = {"traceparent": TRACEPARENT[:-1] + "0"}
        await app.client.post("/v1/rescore", json=request(), headers=headers)
        assert not app.spans()
        assert TRACE_ID not in (await app.client.get("/metrics", headers=OPENMETRICS)).text


@pytest.mark.anyio
async def test_a_request_that_failed_has_a_span_that_says_so_and_quotes_nothing() -> None:
    model = TableModel(error=RuntimeError("no kernel for heliotrope"))
    async with traced(model) as app:
        await app.client.post("/v1/rescore", json=request(utterance("the heliotrope")))
        (server,) = app.spans()
    assert not server.status.is_ok
    assert "heliotrope" not in server.to_json()


@pytest.mark.anyio
async def test_nothing_that_was_sent_stands_in_a_span() -> None:
    async with traced() as app:
        await app.client.post("/v1/rescore", json=request(utterance("heliotrope", id="heliotrope")))
        await app.client.get("/v1/heliotrope?heliotrope=1")
        exported = "".join(span.to_json() for span in app.spans())
    assert "GET unknown" in exported
    assert "heliotrope" not in exported


@pytest.mark.anyio
async def test_durations_have_the_trace_as_exemplar_in_openmetrics() -> None:
    async with traced() as app:
        await app.client.post("/v1/rescore", json=request(), headers={"traceparent": TRACEPARENT})
        text = (await app.client.get("/metrics", headers=OPENMETRICS)).text
        plain = (await app.client.get("/metrics")).text
    (line,) = [line for line in text.splitlines() if TRACE_ID in line]
    assert line.startswith('rescore_request_duration_seconds_bucket{le="')
    assert 'route="/v1/rescore"' in line
    assert TRACE_ID not in plain


@pytest.mark.anyio
async def test_log_lines_name_the_trace() -> None:
    stream = io.StringIO()
    with logging_to(stream, Settings(log_format="json"), lambda: None):
        async with traced(TableModel(error=RuntimeError())) as app:
            headers = {"traceparent": TRACEPARENT}
            await app.client.post("/v1/rescore", json=request(), headers=headers)
    assert f'"trace_id": "{TRACE_ID}"' in stream.getvalue()


@pytest.mark.anyio
async def test_probes_and_scrapes_are_not_traced() -> None:
    async with traced() as app:
        for path in ("/health/ready", "/metrics", "/"):
            assert (await app.client.get(path)).status_code == 200
        assert not app.spans()


@pytest.mark.anyio
async def test_what_is_not_sampled_is_not_exported() -> None:
    async with traced(provider=TracerProvider(sampler=ALWAYS_OFF)) as app:
        assert (await app.client.post("/v1/rescore", json=request())).status_code == 200
        assert not app.spans()


def test_a_collector_that_hangs_does_not_keep_the_server_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, is_ended = threading.Event(), threading.Event()

    class Hanging(InMemorySpanExporter):
        def shutdown(self) -> None:
            gate.wait(20)
            is_ended.set()

    monkeypatch.setattr(spans, "SHUTDOWN_S", 0.01)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Hanging()))
    try:
        RequestSpans(provider).shutdown()
        assert not is_ended.is_set()
    finally:
        gate.set()
    assert is_ended.wait(20)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "asr"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "console,zipkin"},
    ],
)
def test_without_an_exporter_there_is_nothing(environ: Json) -> None:
    assert start_tracing(environ) is None


@pytest.mark.parametrize("exporters", [{}, {"OTEL_TRACES_EXPORTER": "console, OTLP"}])
def test_an_endpoint_is_enough(monkeypatch: pytest.MonkeyPatch, exporters: Json) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    tracing = start_tracing({**ENDPOINT, **exporters})
    assert tracing is not None
    tracing.shutdown()


def test_what_cannot_be_done_is_said_and_not_fatal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert start_tracing({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) is None
    assert "need http/protobuf" in caplog.text
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert start_tracing(ENDPOINT) is None
    assert "pip install 'secondpass[otel]'" in caplog.text


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1")],
)
def test_a_variable_that_the_sdk_refuses_costs_the_traces_and_not_the_server(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, value)  # the queue is smaller than what one export takes
    assert start_tracing(ENDPOINT) is None
    assert "no traces: the OTEL_* variables are refused (" in caplog.text
