"""Real sockets: connections are kept, and no server holds a call beyond its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from quantized_lm.errors import InputError
from service.client import AsyncClient, Client, ClientSettings, RescoreReply
from tests.service.client.driving import LISTS, OWN, OWN_ID, reply_to, texts

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
Serve = Callable[[socket.socket], None]


class Server:
    """Accepts connections on a free port of loopback and does with each what it is told."""

    def __init__(self, serve: Serve) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._serve = serve
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
                thread.start()

    def _run(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()


@contextlib.contextmanager
def serving(serve: Serve) -> Iterator[Server]:
    server = Server(serve)
    try:
        yield server
    finally:
        server.close()


def read_request(connection: socket.socket) -> bytes:
    """Content of the answer to it; none if there was no whole request."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65536)
        if not part:
            return b""
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    lines = [line.split(b": ") for line in head.split(b"\r\n")[1:]]
    fields = {name.lower(): value for name, value in lines}
    while len(body) < int(fields[b"content-length"]):
        part = connection.recv(65536)
        if not part:
            return b""
        body += part
    reply = json.dumps(reply_to(LISTS)).encode()
    return reply.replace(OWN_ID.encode(), fields[b"x-request-id"])


def answers(connection: socket.socket) -> None:
    while content := read_request(connection):
        connection.sendall(HEAD % len(content) + content)


def answers_off_by_one(connection: socket.socket) -> None:
    """Each request gets the answer to the one before it."""
    last = b"{}"
    while content := read_request(connection):
        connection.sendall(HEAD % len(last) + last)
        last = content


def says_nothing(connection: socket.socket) -> None:
    connection.recv(65536)
    time.sleep(0.6)


def trickles(connection: socket.socket) -> None:
    content = read_request(connection)
    connection.sendall(HEAD % len(content))
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def trickles_its_head(connection: socket.socket) -> None:
    content = read_request(connection)
    for byte in HEAD % len(content):
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def hangs_up(connection: socket.socket) -> None:
    content = read_request(connection)
    connection.sendall(HEAD % len(content) + content[:30])


async def _async(url: str, calls: int, deadline_ms: float) -> list[RescoreReply]:
    async with AsyncClient(url, ClientSettings(max_attempts=2)) as client:
        return [await client.rescore(LISTS, deadline_ms=deadline_ms) for _ in range(calls)]


def ask(
    url: str, *, is_async: bool, calls: int = 1, deadline_ms: float = 5000
) -> list[RescoreReply]:
    if is_async:
        return asyncio.run(_async(url, calls, deadline_ms))
    with Client(url, ClientSettings(max_attempts=2)) as client:
        return [client.rescore(LISTS, deadline_ms=deadline_ms) for _ in range(calls)]


BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@BOTH
def test_a_connection_is_kept(is_async: bool) -> None:
    with serving(answers) as server:
        replies = ask(server.url, is_async=is_async, calls=5)
        assert all(reply.degraded == () for reply in replies)
        assert server.connections == 1


@BOTH
@pytest.mark.real_clock
@pytest.mark.parametrize("serve", [says_nothing, trickles, trickles_its_head])
def test_a_server_that_holds_back_costs_the_deadline(serve: Serve, is_async: bool) -> None:
    with serving(serve) as server:
        began_s = time.monotonic()
        (reply,) = ask(server.url, is_async=is_async, deadline_ms=150)
        took_s = time.monotonic() - began_s
    assert (texts(reply), reply.degraded) == (OWN, ("deadline",))
    assert took_s < 0.15 + 0.4


@pytest.mark.real_clock
def test_all_phases_of_a_call_end_at_its_deadline() -> None:
    def call(deadline_ms: float) -> float:
        began_s = time.monotonic()
        assert client.rescore(LISTS, deadline_ms=deadline_ms).degraded == ("deadline",)
        return time.monotonic() - began_s

    settings = ClientSettings(max_connections=1)
    with (
        serving(says_nothing) as server,
        Client(server.url, settings) as client,
        ThreadPoolExecutor() as callers,
    ):
        has_it = callers.submit(call, 250)
        waits_for_it = callers.submit(call, 300)
        assert has_it.result() < 0.25 + 0.2
        assert waits_for_it.result() < 0.3 + 0.2


@pytest.mark.real_clock
def test_a_name_server_that_says_nothing_costs_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_ended = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        has_ended.wait(5)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    began_s = time.monotonic()
    with Client("http://service.test", ClientSettings(deadline_ms=100)) as client:
        reply = client.rescore(LISTS)
    took_s = time.monotonic() - began_s
    has_ended.set()
    assert (texts(reply), reply.degraded) == (OWN, ("deadline",))
    assert took_s < 0.1 + 0.4


@BOTH
def test_a_connection_with_another_requests_answer_is_not_used_again(is_async: bool) -> None:
    with serving(answers_off_by_one) as server:
        replies = ask(server.url, is_async=is_async, calls=3)
        assert [reply.degraded for reply in replies] == [("invalid_reply",)] * 3
        assert server.connections == 3


@BOTH
def test_half_an_answer_is_asked_for_again(is_async: bool) -> None:
    with serving(hangs_up) as server:
        (reply,) = ask(server.url, is_async=is_async)
        assert (texts(reply), reply.degraded) == (OWN, ("unavailable",))
        assert server.connections == 2


@BOTH
def test_nobody_there(is_async: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    (reply,) = ask(url, is_async=is_async)
    assert (texts(reply), reply.degraded) == (OWN, ("unavailable",))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_event_loop_to_each_call_is_a_connection_to_each_call() -> None:
    def ask() -> tuple[list[tuple[str, ...]], int]:
        client = AsyncClient(server.url)
        replies = [asyncio.run(client.rescore(LISTS)) for _ in range(4)]
        return [reply.degraded for reply in replies], client.stats.retries

    with serving(answers) as server:
        assert ask() == ([()] * 4, 0)
        assert server.connections == 4
    gc.collect()  # finds the sockets of loops that are gone, within this test


def test_each_of_several_event_loops_keeps_its_connection() -> None:
    with (
        serving(answers) as server,
        contextlib.closing(asyncio.new_event_loop()) as one,
        contextlib.closing(asyncio.new_event_loop()) as other,
    ):
        client = AsyncClient(server.url)
        for loop in (one, other, one, other):
            assert loop.run_until_complete(client.rescore(LISTS)).degraded == ()
        assert server.connections == 2
        for loop in (one, other):
            loop.run_until_complete(client.aclose())


def in_child(act: Callable[[], bool]) -> bool:
    """Whether a forked child finds so, within 5 s."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(5)
            code = 0 if act() else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own() -> None:
    with serving(answers) as server, Client(server.url) as client:
        for _ in range(2):
            assert client.rescore(LISTS).degraded == ()
            assert in_child(lambda: client.rescore(LISTS).degraded == ())
        assert client.rescore(LISTS).degraded == ()
        assert server.connections == 1 + 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_finds_no_lock_taken_and_no_circuit_open() -> None:
    def starts_afresh() -> bool:
        is_answered = client.rescore(LISTS).degraded == ()
        client.close()
        return is_answered and client.stats.calls == 1

    with serving(answers) as server, Client(server.url) as client:
        client.rescore(LISTS)
        exchange = client._exchange
        for _ in range(ClientSettings().failures_to_open):
            exchange._breaker.fail()
        with exchange._breaker._lock, exchange.counts._lock:
            assert in_child(starts_afresh)
        assert client.rescore(LISTS).degraded == ("circuit_open",)


def test_a_transport_that_cannot_be_made_anew_is_refused() -> None:
    with pytest.raises(InputError, match="lambda: httpx.HTTPTransport"):
        Client("http://test", transport=httpx.HTTPTransport())  # type: ignore[arg-type]
