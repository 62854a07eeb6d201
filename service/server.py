"""uvicorn with a drain: after the first signal it serves on for a while, then exits 0.

One process and one event loop serve the main port and, if there is one, the admin port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.connections import BoundedConfig, BoundedProtocol, ConnectionLimits
from service.errors import PortError
from service.logs import logging_to
from service.metrics import Metrics
from service.settings import Settings, misspelled
from service.tracing import start_tracing

RESERVED_FILES = 64  # descriptors that are no connections: libraries, logs, models being read
logger = logging.getLogger("uvicorn.error")  # where uvicorn says such things itself
ANSWERS_S = 2  # for sending what whoever still waits at the end is told
GC_OBJECTS = 10_000  # made and not freed before the collector looks for cycles; Python's is 700
# What the engine's Python may keep the event loop waiting; Python's own is ten times that.
SWITCH_S = 0.0005
# Of an address that another machine has, or that is of a family this one does not speak.
NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class DrainingServer(uvicorn.Server):
    """Sets `app.state.draining` at the first signal and stops `drain_s` later, or at the second.

    The config's timeout_graceful_shutdown is when whoever still waits is told that the server is
    going away; uvicorn's own end of it, which cancels requests, comes ANSWERS_S later.

    Runs the app's lifespan itself: uvicorn would log a refused model as a traceback and exit 3,
    here the error reaches whoever called `run`.
    """

    def __init__(
        self, config: uvicorn.Config, *, drain_s: float, admin: uvicorn.Config | None = None
    ) -> None:
        super().__init__(config)
        config.lifespan = "off"
        self._lifespan = contextlib.AsyncExitStack()
        self._admin = None if admin is None else _second(admin)
        self._reload: asyncio.Task[None] | None = None
        self._is_outdated = False  # a hangup came, and models have not been looked at since
        self._drain_s = drain_s
        self._shutdown_s = config.timeout_graceful_shutdown
        if self._shutdown_s is not None:
            config.timeout_graceful_shutdown = self._shutdown_s + ANSWERS_S
        self._exit_at_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Begin to drain; a second signal ends the drain, a third one the requests in flight."""
        if self._exit_at_s is None:
            self.config.app.state.draining.set()  # type: ignore[union-attr]
            self._exit_at_s = time.monotonic() + self._drain_s
        elif not self.should_exit:
            self.should_exit = True
        else:
            self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take the ports, load the models, then listen.

        A port that is taken is known before a model is loaded; nobody is answered until all are.
        Nor is anybody if another server has begun to listen meanwhile, or both ports are one.
        Then all that is loaded is taken out of the garbage collector's sight. A full collection
        walks every object torch has made: 150 ms in the middle of some request. Small ones come
        more rarely: a reply is hundreds of objects, none of them garbage yet.
        """
        app = self.config.app
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        async with contextlib.AsyncExitStack() as started:
            sockets = sockets or [started.enter_context(one) for one in _bound(self.config)]
            second = [] if self._admin is None else _bound(self._admin.config)
            admins = [started.enter_context(one) for one in second]
            await started.enter_async_context(app.router.lifespan_context(app))  # type: ignore[union-attr]
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_OBJECTS)
            sys.setswitchinterval(SWITCH_S)
            for listener in (*sockets, *admins):
                _listen(listener)
            await super().startup(sockets)
            logger.info("running on %s", _urls(sockets))
            if self._admin is not None:
                await self._admin.startup(admins)
                logger.info("admin port on %s", _urls(admins))
            self._lifespan = started.pop_all()
        if self._is_outdated:
            self._on_hangup()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the ports, finish what is in flight, then stop the engine.

        The admin port last, so that what watches can see the end.
        """
        telling = asyncio.create_task(self._tell_who_waits())
        await super().shutdown(sockets)
        telling.cancel()
        if self._admin is not None:
            await self._admin.shutdown()
        await self._lifespan.aclose()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now."""
        if self._admin is not None:
            await self._admin.on_tick(counter)
        is_drained = self._exit_at_s is not None and time.monotonic() >= self._exit_at_s
        return await super().on_tick(counter) or is_drained

    async def _tell_who_waits(self) -> None:
        """End the work of the requests that are in flight for too long."""
        if self._shutdown_s is not None:
            await asyncio.sleep(self._shutdown_s)
            await asyncio.to_thread(self.config.app.state.core.engine.stop, 0.0)  # type: ignore[union-attr]
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedProtocol):
                    connection.turn_away()

    def _on_hangup(self) -> None:
        """Read the API keys again, and the models that have changed."""
        self._is_outdated = True
        if not self.started:  # the keys have been read before, and some of the models
            return
        self.config.app.state.keys.reload()  # type: ignore[union-attr]
        if self._reload is None or self._reload.done():
            self._reload = asyncio.get_running_loop().create_task(self._reload_models())

    async def _reload_models(self) -> None:
        """Read the models that have changed, again if a hangup comes while they are being read."""
        while self._is_outdated:
            self._is_outdated = False
            await self.config.app.state.core.control.reload_changed()  # type: ignore[union-attr]


def serve(settings: Settings) -> None:
    """Serve until a signal; requests in flight are finished.

    Raises:
        SecondpassError: a model is refused, or the backend cannot be used here.
        PortError: a port is taken.
    """
    metrics = Metrics()
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        # There is none where whoever started us has closed it, as some supervisors do.
        logging_to(sys.stderr or nowhere, settings, metrics.log_failures.inc),
    ):
        for variable, setting in misspelled(os.environ).items():
            logger.warning("%s is no setting and does nothing; is it %s?", variable, setting)
        app = create_app(settings, metrics=metrics, spans=start_tracing(os.environ))
        admin = None
        if settings.admin_port is not None:
            admin = _config(app.state.admin, settings, metrics)
            admin.host, admin.port = settings.admin_host, settings.admin_port
        config = _config(app, settings, metrics)
        DrainingServer(config, drain_s=settings.drain_s, admin=admin).run()


def _config(app: FastAPI, settings: Settings, metrics: Metrics) -> BoundedConfig:
    """What a port is like; the main one's address."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limits = ConnectionLimits(
        settings.read_timeout_s,
        max(min(settings.max_connections, files - RESERVED_FILES), 1),
        metrics.read_timeouts.inc,
        lambda reason: metrics.refused_connections.labels(reason).inc(),
    )
    return BoundedConfig(
        app,
        limits,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        workers=1,  # or uvicorn reads WEB_CONCURRENCY, and ends where that is no number
        timeout_graceful_shutdown=settings.shutdown_s,
    )


def _second(config: uvicorn.Config) -> uvicorn.Server:
    """A server that another one starts, ticks and shuts down."""
    config.lifespan = "off"
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    return server


def _bound(config: uvicorn.Config) -> list[socket.socket]:
    """Sockets at the addresses of a port, on which nobody listens yet; they have one number.

    A name may have several, as localhost has `::1` and `127.0.0.1`, and clients take either. One
    that is not this machine's, such as the former where there is no IPv6, is left out.

    Raises:
        PortError: an address is taken, none is ours, or the name is unknown.
    """
    host, number = config.host, config.port
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):  # some come twice
            try:
                listeners.append(_bind(family, (address[0], number, *address[2:])))
            except OSError as error:
                if error.errno not in NOT_OURS:
                    raise
                absent = error
            else:
                number = listeners[0].getsockname()[1]
        if absent is not None and not listeners:
            raise absent
    except (OSError, UnicodeError) as error:  # the latter of a name that is none, such as ".a"
        for listener in listeners:
            listener.close()
        raise _unusable(host, config.port, error) from None
    return listeners


def _bind(family: int, address: tuple[str | int, ...]) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _listen(listener: socket.socket) -> None:
    """Listen at last: two sockets may have one address for as long as neither does.

    Raises:
        PortError: the other one did first.
    """
    try:
        listener.listen()
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _unusable(host, port, error) from None


def _unusable(host: str, port: int, error: OSError | UnicodeError) -> PortError:
    reason = error.strerror if isinstance(error, OSError) else "no name of a host"
    return PortError(
        f"cannot listen on {host} port {port} ({reason}); need an address that is free"
    )


def _urls(listeners: list[socket.socket]) -> str:
    addresses = (listener.getsockname()[:2] for listener in listeners)
    return " ".join(
        f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        for host, port in addresses
    )
