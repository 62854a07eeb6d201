"""uvicorn with a drain: after the first signal it serves on for a while, then exits 0."""

from __future__ import annotations

import contextlib
import gc
import socket
import time
from types import FrameType

import uvicorn

from service.app import create_app
from service.settings import Settings

GC_OBJECTS = 10_000  # made and not freed before the collector looks for cycles; Python's is 700


class DrainingServer(uvicorn.Server):
    """Sets `app.state.draining` at the first signal and stops `drain_s` later, or at the second.

    Runs the app's lifespan itself: uvicorn would log a refused model as a traceback and exit 3,
    here the error reaches whoever called `run`.
    """

    def __init__(self, config: uvicorn.Config, *, drain_s: float) -> None:
        super().__init__(config)
        config.lifespan = "off"
        self._lifespan = contextlib.AsyncExitStack()
        self._drain_s = drain_s
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
        """Load the models, then take all that is loaded out of the garbage collector's sight.

        A full collection walks every object torch has made: 150 ms in the middle of some request.
        Small ones come more rarely: a reply is hundreds of objects, none of them garbage yet.
        """
        app = self.config.app
        await self._lifespan.enter_async_context(app.router.lifespan_context(app))  # type: ignore[union-attr]
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_OBJECTS)
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's answer to a port that is taken
            await self._lifespan.aclose()
            raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, finish what is in flight, then stop the engine."""
        await super().shutdown(sockets)
        await self._lifespan.aclose()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now."""
        is_drained = self._exit_at_s is not None and time.monotonic() >= self._exit_at_s
        return await super().on_tick(counter) or is_drained


def serve(settings: Settings) -> None:
    """Serve until a signal; requests in flight are finished.

    Raises:
        SecondpassError: a model is refused, or the backend cannot be used here.
        SystemExit: the port is taken.
    """
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    DrainingServer(config, drain_s=settings.drain_s).run()
