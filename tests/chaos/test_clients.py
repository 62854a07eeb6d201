"""Clients that say nothing, or go away in the middle, harm nobody else."""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import struct
import time
from collections.abc import Iterator

import pytest

from tests.chaos.servers import BODY, HEAD, PATIENCE_S, Process, fake, wait_until
from tests.service.serving import request

pytestmark = pytest.mark.real_clock
SILENT = 1000
FILES = SILENT + 200
READ_TIMEOUT_S = 4.0
ANSWERS = 20
NORMAL_S = 0.5  # a request takes milliseconds; a machine that is busy adds some
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    """One server for all of these."""
    with fake(0.05, read_timeout_s=READ_TIMEOUT_S) as process:
        yield process


@pytest.fixture
def _many_files() -> Iterator[None]:
    """As many descriptors as the test needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < FILES:
        pytest.skip(f"this process may open {hard} files; the test needs {FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_files")
def test_a_thousand_silent_connections_delay_nobody_and_are_closed(server: Process) -> None:
    with contextlib.ExitStack() as silent:
        sockets = [
            silent.enter_context(socket.create_connection(server.address)) for _ in range(SILENT)
        ]
        seconds = []
        with server.client() as client:
            for _ in range(ANSWERS):
                started_s = time.monotonic()
                assert client.post("/v1/rescore", json=request()).status_code == 200
                seconds.append(time.monotonic() - started_s)
        assert statistics.median(seconds) < NORMAL_S
        for one in sockets:
            one.settimeout(PATIENCE_S)
            assert one.recv(1) == b""
    assert server.metric("rescore_read_timeouts_total") >= SILENT


@pytest.mark.parametrize(
    ("sent", "outcome"), [(len(BODY) // 2, "canceled"), (len(BODY), "")], ids=["mid", "after"]
)
@pytest.mark.parametrize("resets", [False, True])
def test_a_client_that_goes_is_counted_and_not_a_traceback(
    server: Process, sent: int, outcome: str, resets: bool
) -> None:
    def answered() -> float:
        labels = {"outcome": outcome} if outcome else {"route": "/v1/rescore"}
        return server.metric("rescore_requests_total", **labels)

    before = answered()
    with socket.create_connection(server.address) as gone:
        gone.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:sent])
        time.sleep(0.02)
        if resets:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    wait_until(lambda: answered() == before + 1)
    assert "Traceback" not in server.log
    with server.client() as client:
        assert client.post("/v1/rescore", json=request()).status_code == 200
