"""Clients that are slow, idle, too many, or gone; on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from service import connections
from service.errors import ERRORS, HTTP_ERRORS, PROBLEM_JSON
from service.schemas import RequestProblem
from tests.fakes import TableModel
from tests.service.listening import Listening, answer, listening, whole_answer
from tests.service.serving import request, utterance

pytestmark = pytest.mark.anyio
BODY = json.dumps(request()).encode()
HEAD = b"POST /v1/rescore HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
KINDS = (*ERRORS.values(), *HTTP_ERRORS.values())
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
LIST = json.dumps(request(utterance(*["the cat"] * 200))).encode()
LONG = HEAD + b"content-length: %d\r\n\r\n" % len(LIST) + LIST  # the answer is, 47 kB
ASSET = LIVE.replace(b"/health/live", b"/docs/assets/swagger-ui-bundle.js")  # 1.5 MB, in parts
EARLY = WHOLE.removesuffix(BODY).replace(b"application/json", b"text/plain")  # has its answer
H2C = b"connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nhttp2-settings: AAMA\r\n"


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


def offering(sent: bytes, offer: bytes = H2C) -> bytes:
    """A request that offers to go on in another protocol."""
    return sent.replace(b"host: x\r\n", b"host: x\r\n" + offer)


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
            LIVE.replace(b"GET /health/live", b"CONNECT a:80"): "",
            LIVE.replace(b"GET /", b"CONNECT http://a/"): "",
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


@pytest.mark.parametrize("step", [1, 7, 100_000])
async def test_an_offer_to_speak_another_protocol_is_passed_over(step: int) -> None:
    chunks = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    websocket = b"Connection: Upgrade\r\nUPGRADE: websocket\r\nsec-websocket-version: 13\r\n"
    last = offering(WHOLE, b"connection: close, Upgrade\r\nupgrade: h2c\r\n")
    requests = (
        *(offering(WHOLE), WHOLE, offering(HEAD + chunks), offering(LIVE)),
        *(offering(WHOLE, websocket), last),
    )
    whole = b"".join(requests)
    *parts, end = (whole[start : start + step] for start in range(0, len(whole), step))
    async with listening() as server:
        reader, writer = await server.connect()
        for part in (*parts, end + LIVE):  # what comes after "close" is nobody's
            writer.write(part)
            await asyncio.sleep(0)
        answers = [await answer(reader) for _ in requests]
        assert [status for status, _ in answers] == [200] * len(requests)
        lists = [told["results"] for _, told in answers if "results" in told]
        assert lists == lists[:1] * 5
        assert await reader.read() == b""
        assert not server.refused
        writer.close()


@pytest.mark.real_clock
@pytest.mark.parametrize(("sent", "late"), [(EARLY, BODY), (WHOLE, b"\r\n")])
async def test_what_comes_after_an_answer_does_not_keep_a_connection_open(
    sent: bytes, late: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "KEEP_ALIVE_S", 0.2)
    async with listening() as server:
        reader, writer = await server.connect()
        writer.write(sent)
        await answer(reader)
        writer.write(late)
        assert await asyncio.wait_for(reader.read(), 2.0) == b""
        writer.close()


@pytest.mark.real_clock
async def test_a_body_that_comes_after_its_answer_has_the_time_of_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "KEEP_ALIVE_S", 0.1)
    async with listening(read_timeout_s=0.4) as server:
        reader, writer = await server.connect()
        writer.write(EARLY + BODY[:-1])
        assert (await answer(reader))[0] == 415
        await asyncio.sleep(0.2)  # longer than a connection is kept alive
        writer.write(BODY[-1:] + LIVE)
        assert (await answer(reader))[0] == 200
        writer.write(EARLY)
        assert (await answer(reader))[0] == 415
        assert await asyncio.wait_for(reader.read(), 2.0) == b""
        assert len(server.timeouts) == 1
        writer.close()


@pytest.mark.real_clock
async def test_a_connection_that_had_its_answer_before_its_body_came_gives_way() -> None:
    async with listening(max_connections=1) as server:
        reader, writer = await server.connect()
        writer.write(EARLY)
        assert (await answer(reader))[0] == 415
        writer.write(BODY)
        await asyncio.sleep(0.05)  # until it is here
        assert await ask(server, LIVE) == 200
        assert await asyncio.wait_for(reader.read(), 2.0) == b""
        writer.close()


@contextlib.contextmanager
def unread(server: Listening, sent: bytes) -> Iterator[socket.socket]:
    """A client that sends this and takes next to nothing of the answer."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(sent)
        client.setblocking(False)
        yield client


def unsent_bytes(connection: connections.BoundedProtocol) -> int:
    """What of its answers the kernel has not taken."""
    return connection.transport.get_write_buffer_size()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something, for 2 s at most."""
    for _ in range(200):
        if holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come")


@pytest.mark.real_clock
@pytest.mark.parametrize("sent", [LONG, offering(LONG, b"connection: close\r\n"), LONG * 4, ASSET])
async def test_an_answer_that_nobody_takes_is_given_up(sent: bytes) -> None:
    async with listening(read_timeout_s=0.2, kernel_bytes=4096) as server:
        with unread(server, sent):
            await until(lambda: len(server.connections) == 1)
            await until(lambda: not server.connections)
        assert len(server.timeouts) == 1


@pytest.mark.real_clock
async def test_an_answer_that_is_taken_slowly_is_not_given_up() -> None:
    loop = asyncio.get_running_loop()
    async with listening(read_timeout_s=0.4, kernel_bytes=1 << 18) as server:
        with unread(server, ASSET) as client:
            taken = 0
            while taken < 160_000:  # the kernel asks for more each 0.6 s
                taken += len(await loop.sock_recv(client, 2000))
                await asyncio.sleep(0.01)
            while taken < 1_500_000:
                taken += len(part := await loop.sock_recv(client, 100_000))
                assert part
        assert not server.timeouts


@pytest.mark.real_clock
async def test_an_answer_that_nobody_takes_gives_way_after_what_is_idle() -> None:
    async with listening(max_connections=2, kernel_bytes=4096) as server:
        with unread(server, LONG):
            await until(lambda: any(map(unsent_bytes, server.limits.waiting)))
            reader, writer = await server.connect()  # younger, and has nothing to lose
            assert await ask(server, LIVE) == 200
            assert await asyncio.wait_for(reader.read(), 2.0) == b""
            writer.close()
        with unread(server, LONG), unread(server, LONG):
            await until(lambda: sum(map(bool, map(unsent_bytes, server.limits.waiting))) == 2)
            for _ in range(4):
                assert await ask(server, LIVE) == 200


async def test_an_answer_below_the_app_echoes_the_id_of_the_call() -> None:
    called = WHOLE.replace(b"host: x", b"host: x\r\nx-request-id: a-proxy's\r\nx-call-id: mine")
    async with listening() as server:
        reader, writer = await server.connect()
        writer.write(called.replace(b"content-length", b"no header\r\ncontent-length"))
        status, fields, _ = await whole_answer(reader)
        assert (status, fields[b"x-call-id"]) == (400, b"mine")
        writer.close()
