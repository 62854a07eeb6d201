"""Signals: drain, finish what is in flight, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from service import cli
from service.app import create_app
from service.connections import BoundedConfig, ConnectionLimits
from service.errors import PortError
from service.server import GC_OBJECTS, DrainingServer
from service.settings import Settings
from tests.fakes import FakeLoader, fake_loaded
from tests.service.serving import request

ROOT = Path(__file__).parents[2]
SERVER = """
import sys, threading
from pathlib import Path
import uvicorn
from service.app import create_app
from service.server import DrainingServer
from service.settings import Settings
from tests.fakes import FakeLoader, TableModel, fake_loaded

model = TableModel()
model.gate.clear()
shutdown_s = int(sys.argv[2])
settings = Settings(models=(Path("tiny"),), shutdown_s=shutdown_s or 30)
app = create_app(settings, load=FakeLoader(fake_loaded(model=model)))

def open_gate():
    app.state.draining.wait()
    model.gate.set()

if not shutdown_s:
    threading.Thread(target=open_gate, daemon=True).start()
config = uvicorn.Config(
    app, port=0, access_log=False, timeout_graceful_shutdown=shutdown_s or None
)
DrainingServer(config, drain_s=float(sys.argv[1])).run()
"""


@contextlib.contextmanager
def serving(
    drain_s: float, shutdown_s: int = 0
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server process whose model answers only once the drain has begun.

    Args:
        shutdown_s: if it is not 0, the model never answers, and this is how long requests wait.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(drain_s), str(shutdown_s)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    rest = threading.Thread(target=process.stderr.read)  # or the pipe fills and the server waits
    for line in process.stderr:
        if found := re.search(r"running on (http://\S+)", line):
            break
    else:
        pytest.fail("the server did not start")
    rest.start()
    try:
        with httpx.Client(base_url=found[1], trust_env=False, timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()
        rest.join()
        process.stderr.close()


def test_sigterm_finishes_what_is_in_flight_and_exits_0() -> None:
    with serving(drain_s=0) as (process, client), ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.post, "/v1/rescore", json=request())
        while 'inflight_requests{model="tiny"} 1.0' not in client.get("/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        assert waiting.result(60).status_code == 200
        assert process.wait(60) == 0


def test_who_waits_longer_than_the_shutdown_may_take_is_told_that_the_server_goes() -> None:
    with serving(drain_s=0, shutdown_s=1) as (process, client), ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.post, "/v1/rescore", json=request())
        while 'inflight_requests{model="tiny"} 1.0' not in client.get("/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        reply = waiting.result(60)
        assert (reply.status_code, reply.json()["code"]) == (503, "draining")
        assert process.wait(60) == 0


def test_during_the_drain_ready_is_503_and_work_is_served_until_a_second_signal() -> None:
    with serving(drain_s=3600) as (process, client):
        assert client.get("/health/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        while client.get("/health/ready").status_code == 200:
            pass
        assert client.get("/health/ready").json()["code"] == "draining"
        assert client.get("/health/live").status_code == 200
        assert client.post("/v1/rescore", json=request()).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


class Stub:
    """An app of which only state and lifespan are looked at."""

    def __init__(self) -> None:
        self.state = self.router = self
        self.draining = threading.Event()
        self.is_running = self.has_run = False

    @contextlib.asynccontextmanager
    async def lifespan_context(self, _app: object) -> AsyncIterator[None]:
        self.is_running = self.has_run = True
        yield
        self.is_running = False


@pytest.mark.anyio
async def test_signals_drain_then_stop_then_force() -> None:
    app = Stub()
    server = DrainingServer(uvicorn.Config(app, log_config=None), drain_s=3600.0)  # type: ignore[arg-type]
    assert not await server.on_tick(1)
    server.handle_exit(signal.SIGTERM, None)
    assert app.draining.is_set()
    assert not await server.on_tick(1)
    server.handle_exit(signal.SIGTERM, None)
    assert await server.on_tick(1)
    assert not server.force_exit
    server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit


@pytest.mark.anyio
async def test_without_a_drain_the_first_signal_stops() -> None:
    server = DrainingServer(uvicorn.Config(Stub(), log_config=None), drain_s=0.0)  # type: ignore[arg-type]
    server.handle_exit(signal.SIGINT, None)
    assert await server.on_tick(1)


class Reloading(Stub):
    """One that writes down what it is told to read again; the models take until it may end."""

    keys = control = core = property(lambda self: self)

    def __init__(self) -> None:
        super().__init__()
        self.heeded: list[str] = []
        self.may_end = asyncio.Event()

    def reload(self) -> None:
        self.heeded.append("keys")

    async def reload_changed(self) -> None:
        self.heeded.append("models")
        await self.may_end.wait()


async def hang_up() -> None:
    """Send the signal, and wait until the loop has taken it up."""
    signal.raise_signal(signal.SIGHUP)
    for _ in range(10):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def started(app: Stub, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A server of this app that has taken its ports and answers nobody."""

    async def begin(server: uvicorn.Server, _sockets: object = None) -> None:
        assert app.is_running
        server.started = True

    async def end(_server: uvicorn.Server, _sockets: object = None) -> None:
        assert app.is_running

    monkeypatch.setattr(uvicorn.Server, "startup", begin)
    monkeypatch.setattr(uvicorn.Server, "shutdown", end)
    server = DrainingServer(uvicorn.Config(app, port=0, log_config=None), drain_s=0.0)  # type: ignore[arg-type]
    await server.startup()
    yield
    await server.shutdown()


@pytest.mark.anyio
@pytest.mark.usefixtures("_collector")
async def test_a_hangup_while_models_are_loaded_is_heeded_once_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(Reloading):
        @contextlib.asynccontextmanager
        async def lifespan_context(self, app: object) -> AsyncIterator[None]:
            await hang_up()
            assert not self.heeded
            async with super().lifespan_context(app):
                yield

    app = Slow()
    app.may_end.set()
    async with started(app, monkeypatch):
        await asyncio.sleep(0)
        assert app.heeded == ["keys", "models"]


@pytest.mark.anyio
@pytest.mark.usefixtures("_collector")
async def test_hangups_while_models_are_read_again_are_heeded_once_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Reloading()
    async with started(app, monkeypatch):
        for _ in range(3):
            await hang_up()
        assert app.heeded == ["keys", "models", "keys", "keys"]
        app.may_end.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert app.heeded[4:] == ["models"]  # once for both
        await hang_up()
        assert app.heeded[5:] == ["keys", "models"]


@pytest.fixture
def _collector() -> Iterator[None]:
    """Leaves the garbage collector as it was."""
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.anyio
@pytest.mark.usefixtures("_collector")
async def test_who_is_still_sending_then_is_told_that_the_server_goes() -> None:
    app = create_app(Settings(models=(Path("tiny"),)), load=FakeLoader(fake_loaded()))
    limits = ConnectionLimits(30.0, 9, lambda: None, lambda _reason: None)
    config = BoundedConfig(app, limits, port=0, log_config=None, timeout_graceful_shutdown=0)
    config.load()
    server = DrainingServer(config, drain_s=0.0)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await server.startup([listener])
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(
            b"POST /v1/rescore HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 9\r\n\r\n{"
        )
        while not server.server_state.tasks:
            await asyncio.sleep(0)
        await server.shutdown()
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body)["code"] == "draining"


@pytest.mark.anyio
@pytest.mark.usefixtures("_collector")
@pytest.mark.parametrize("is_admin", [False, True])
async def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(is_admin: bool) -> None:
    app = Stub()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [0, taken.getsockname()[1]]
        main, admin = (
            uvicorn.Config(app, port=port, log_config=None)  # type: ignore[arg-type]
            for port in ports[:: 1 if is_admin else -1]
        )
        server = DrainingServer(main, drain_s=0.0, admin=admin)
        with pytest.raises(PortError, match=rf"port {ports[1]} \(Address already in use\)"):
            await server.serve()
    assert not app.has_run


@pytest.mark.anyio
@pytest.mark.usefixtures("_collector")
async def test_a_port_that_another_server_takes_while_models_are_loaded_is_told() -> None:
    rival = socket.socket()
    rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    rival.bind(("127.0.0.1", 0))  # as a second server that was started at the same time
    port = rival.getsockname()[1]

    class Slow(Stub):
        @contextlib.asynccontextmanager
        async def lifespan_context(self, app: object) -> AsyncIterator[None]:
            async with super().lifespan_context(app):
                rival.listen()
                yield

    config = uvicorn.Config(Slow(), port=port, log_config=None)  # type: ignore[arg-type]
    with rival, pytest.raises(PortError, match=rf"port {port} \(Address already in use\)"):
        await DrainingServer(config, drain_s=0.0).serve()


@pytest.mark.anyio
@pytest.mark.usefixtures("_collector")
async def test_one_port_for_everybody_and_for_admins_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    main, admin = (
        uvicorn.Config(Stub(), port=port, log_config=None)  # type: ignore[arg-type]
        for _ in range(2)
    )
    with pytest.raises(PortError, match=rf"port {port} \(Address already in use\)"):
        await DrainingServer(main, drain_s=0.0, admin=admin).serve()


def several(*hosts: str) -> Callable[..., list[Any]]:
    """A name service that knows one name, of these addresses."""

    def find(_name: str, port: int, **options: Any) -> list[Any]:
        return [one for host in hosts for one in getaddrinfo(host, port, **options)]

    getaddrinfo = socket.getaddrinfo
    return find


@pytest.mark.anyio
@pytest.mark.usefixtures("_collector")
async def test_a_name_is_listened_on_at_each_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "uvicorn.error")
    # One that documentation has for itself, one that may not be here, one that is said twice.
    hosts = several("203.0.113.1", "::1", "127.0.0.2", "127.0.0.1", "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", hosts)
    config = uvicorn.Config(Stub(), host="localhost", port=0, log_config=None)  # type: ignore[arg-type]
    server = DrainingServer(config, drain_s=0.0)
    serving = asyncio.create_task(server.serve())
    while not (server.started or serving.done()):
        await asyncio.sleep(0)
    said = next(line for line in caplog.messages if line.startswith("running on "))
    found = re.findall(r"http://\[?([\d.:]+)\]?:(\d+)", said)
    assert [host for host, _ in found if host != "::1"] == ["127.0.0.2", "127.0.0.1"]
    assert len({port for _, port in found}) == 1
    monkeypatch.undo()
    for host, port in found:
        socket.create_connection((host, int(port))).close()
    server.should_exit = True
    await serving


def test_a_port_that_is_taken_is_one_line_and_exit_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli.build_cli(), ["serve", "--port", str(port)])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in errors[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "host",
    ["203.0.113.1", ".a"],  # one of those that documentation has for itself, and no name at all
)
def test_an_address_that_is_not_here_is_one_line_and_exit_2(host: str) -> None:
    result = CliRunner().invoke(cli.build_cli(), ["serve", "--host", host, "--port", "0"])
    assert result.exit_code == 2
    assert f"cannot listen on {host} port 0" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.anyio
@pytest.mark.usefixtures("_collector")
async def test_what_is_loaded_is_not_walked_by_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, frozen = Stub(), gc.get_freeze_count()
    async with started(app, monkeypatch):
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold()[0] == GC_OBJECTS
    assert not app.is_running
