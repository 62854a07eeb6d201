"""Clients that are slow, idle, too many, or gone; on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service.app import create_app
from service.connections import BoundedConfig, ConnectionLimits
from service.errors import ERRORS, HTTP_ERRORS, PROBLEM_JSON
from service.schemas import RequestProblem
from service.settings import Settings
from tests.fakes import FakeLoader, TableModel, fake_loaded
from tests.service.serving import request

pytestmark = pytest.mark.anyio
BODY = json.dumps(request()).encode()
HEAD = b"POST /v1/rescore HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
KINDS = (*ERRORS.values(), *HTTP_ERRORS.values())
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@dataclass
class Listening:
    """A server on a port of its own."""

    port: int
    app: Any
    limits: ConnectionLimits
    timeouts: list[None]
    refused: list[str]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)


@contextlib.asynccontextmanager
async def listening(
    model: TableModel | None = None, *, read_timeout_s: float = 30.0, max_connections: int = 2000
) -> AsyncIterator[Listening]:
    """A server of one model, in this event loop."""
    model = model or TableModel()
    app = create_app(Settings(models=(Path("tiny"),)), load=FakeLoader(fake_loaded(model=model)))
    timeouts: list[None] = []
    refused: list[str] = []
    limits = ConnectionLimits(
        read_timeout_s, max_connections, lambda: timeouts.append(None), refused.append
    )
    config = BoundedConfig(app, limits, lifespan="off", log_config=None, backlog=4096)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    async with app.router.lifespan_context(app):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await server.startup([listener])
            try:
                yield Listening(listener.getsockname()[1], app, limits, timeouts, refused)
            finally:
                model.gate.set()
                for connection in list(server.server_state.connections):
                    connection.transport.close()
                await server.shutdown()


async def whole_answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes], Any]:
    """Status, headers and JSON of one answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30.0)
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    body = await reader.readexactly(int(fields[b"content-length"]))
    return int(head.split()[1]), fields, json.loads(body)


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of one answer."""
    status, _, body = await whole_answer(reader)
    return status, body


async def refusal(reader: asyncio.StreamReader, instance: str = "", request_id: str = "") -> str:
    """The code of an answer that closes the connection, once it is a whole problem.

    Args:
        request_id: what it has to be; one of ours if empty.
    """
    status, fields, problem = await whole_answer(reader)
    kind = next(one for one in KINDS if one.code == problem["code"])
    assert set(problem) == set(RequestProblem.model_fields)
    assert (problem["status"], problem["instance"]) == (status, instance)
    assert (status, problem["type"]) == (kind.status, f"urn:secondpass:error:{kind.code}")
    assert fields[b"content-type"] == PROBLEM_JSON.encode()
    assert fields[b"x-request-id"].decode() == problem["request_id"]
    assert problem["request_id"].startswith(request_id or "req_")
    assert fields.get(b"retry-after") == (b"1" if status == 503 else None)
    assert fields[b"connection"] == b"close"
    assert await reader.read() == b""
    return kind.code


async def ask(server: Listening, sent: bytes) -> int:
    """The status of the answer to these bytes on a connection of their own."""
    reader, writer = await server.connect()
    writer.write(sent)
    status, _ = await answer(reader)
    writer.close()
    await writer.wait_closed()
    return status


@pytest.mark.real_clock
@pytest.mark.parametrize("sent", [b"G", LIVE[:-2], HEAD, WHOLE[:-1]])
async def test_a_request_that_does_not_come_in_time_is_408(sent: bytes) -> None:
    async with listening(read_timeout_s=0.1) as server:
        reader, writer = await server.connect()
        writer.write(sent)
        status, problem = await answer(reader)
        assert (status, problem["code"]) == (408, "request_timeout")
        assert "0.1 s" in problem["detail"]
        assert await reader.read() == b""
        assert len(server.timeouts) == 1
        writer.close()


@pytest.mark.real_clock
async def test_a_request_that_does_not_come_in_time_keeps_its_id_and_path() -> None:
    async with listening(read_timeout_s=0.1) as server:
        named = WHOLE.replace(b"host: x", b"host: x\r\nx-request-id: abc")
        for sent, known in ((named, ("/v1/rescore", "abc")), (WHOLE, ("/v1/rescore", ""))):
            reader, writer = await server.connect()
            writer.write(sent[:-1])
            assert await refusal(reader, *known) == "request_timeout"
            writer.close()


async def test_what_is_no_http_is_told_as_a_problem() -> None:
    async with listening() as server:
        chunked = HEAD + b"transfer-encoding: chunked\r\n\r\nz\r\n"
        sent = {
            b"GARBAGE\r\n\r\n": "",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": "",
            b"GET \xff HTTP/1.1\r\nhost: x\r\n\r\n": "",
            LIVE.replace(b"host: x", b"no header"): "",
            chunked: "/v1/rescore",
        }
        for what, instance in sent.items():
            reader, writer = await server.connect()
            writer.write(what)
            assert await refusal(reader, instance) == "malformed_http"
            assert server.refused.pop() == "not_http"
            writer.close()
        reader, writer = await server.connect()
        writer.write(WHOLE)
        assert (await answer(reader))[0] == 200
        writer.write(b"GARBAGE\r\n\r\n")
        assert await refusal(reader) == "malformed_http"
        writer.close()
        reader, writer = await server.connect()
        writer.write(chunked.replace(b"application/json", b"text/plain").removesuffix(b"z\r\n"))
        assert (await answer(reader))[0] == 415
        writer.write(b"z\r\n")  # of a request that has its answer
        assert await reader.read() == b""
        writer.close()


@pytest.mark.real_clock
async def test_a_body_that_drips_is_timed_from_its_first_byte() -> None:
    async with listening(read_timeout_s=0.3) as server:
        reader, writer = await server.connect()
        writer.write(WHOLE[: -len(BODY)])
        for byte in BODY[:-1]:  # 20 ms each, so that the whole would take seconds
            if server.timeouts:
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        assert len(server.timeouts) == 1
        with contextlib.suppress(ConnectionResetError):  # what was on its way makes it one
            assert (await answer(reader))[0] == 408
        writer.close()


@pytest.mark.real_clock
async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with listening(read_timeout_s=0.1) as server:
        reader, writer = await server.connect()
        assert await asyncio.wait_for(reader.read(), 30.0) == b""
        assert len(server.timeouts) == 1
        writer.close()


@pytest.mark.real_clock
async def test_the_time_to_answer_and_the_time_between_requests_do_not_count() -> None:
    model = TableModel()
    model.gate.clear()
    async with listening(model, read_timeout_s=0.2) as server:
        reader, writer = await server.connect()
        writer.write(WHOLE)
        await asyncio.sleep(0.5)  # busy with the answer
        model.gate.set()
        assert (await answer(reader))[0] == 200
        await asyncio.sleep(0.5)  # kept alive
        for _ in range(2):
            writer.write(WHOLE + LIVE)
            assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]
        assert not server.timeouts
        writer.write(LIVE[:9])
        assert (await answer(reader))[0] == 408
        writer.close()


async def test_a_head_that_does_not_end_is_431() -> None:
    async with listening() as server:
        for sent in (LIVE[:-2] + b"x: " + b"a" * 70_000, b"GET /" + b"a" * 70_000):
            reader, writer = await server.connect()
            writer.write(sent)
            assert await refusal(reader) == "headers_too_large"
            assert server.refused.pop() == "head_too_large"
            writer.close()
        long = LIVE[:-2] + b"x: " + b"a" * 60_000 + b"\r\n\r\n"
        assert await ask(server, long) == 200


async def test_a_thousand_idle_connections_do_not_keep_others_out() -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2000:
        pytest.skip("1000 connections need 2000 open files; `ulimit -n` allows fewer")
    async with listening(max_connections=300) as server:
        with contextlib.ExitStack() as opened:
            for _ in range(1000):
                idle = opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                idle.setblocking(False)
            assert await ask(server, WHOLE) == 200
            assert await ask(server, LIVE) == 200
            assert len(server.limits.waiting) <= 300


async def test_the_connection_that_has_waited_longest_gives_way() -> None:
    async with listening(max_connections=2) as server:
        first, second = await server.connect(), await server.connect()
        first[1].write(LIVE)  # from now on it is the other one that has waited longer
        assert (await answer(first[0]))[0] == 200
        third = await server.connect()
        assert await asyncio.wait_for(second[0].read(), 30.0) == b""
        for reader, writer in (first, third):
            writer.write(LIVE)
            assert (await answer(reader))[0] == 200
        for _, writer in (first, second, third):
            writer.close()


async def test_what_is_being_answered_is_not_closed_for_a_new_connection() -> None:
    model = TableModel()
    model.gate.clear()
    async with listening(model, max_connections=1) as server:
        reader, writer = await server.connect()
        writer.write(WHOLE)
        while not model.entered.is_set():
            await asyncio.sleep(0)
        refused, other = await server.connect()
        assert await refusal(refused) == "too_many_connections"
        assert server.refused == ["too_many"]
        model.gate.set()
        assert (await answer(reader))[0] == 200
        for one in (writer, other):
            one.close()


@pytest.mark.parametrize("path", ["/v1/rescore", "/v1/score", "/v1/rescore/lattice"])
async def test_a_client_that_leaves_amid_its_body_is_counted_and_not_logged(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening() as server:
        _, writer = await server.connect()
        writer.write(WHOLE[:-5].replace(b"/v1/rescore", path.encode()))
        await writer.drain()
        metrics = server.app.state.core.metrics.registry
        while not server.limits.waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        writer.transport.abort()
        labels = {"route": path, "model": "other", "outcome": "canceled"}
        for _ in range(1000):
            if metrics.get_sample_value("rescore_requests_total", labels):
                break
            await asyncio.sleep(0.005)
        assert metrics.get_sample_value("rescore_requests_total", labels) == 1.0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
