"""The ASGI app: middleware, routes, and a lifespan that loads models and starts the engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from starlette.routing import Route
from starlette.types import Lifespan

from quantized_lm.artifact import LoadedModel, load_artifact
from service.auth import Guard, KeyRing
from service.core import start_core
from service.default_weights import read_default_weights, with_weights
from service.errors import install_error_handlers
from service.logs import RequestLog
from service.loop_lag import LoopLag
from service.metrics import Metrics
from service.middleware import Envelope, Observers
from service.openapi import ProblemApi
from service.registry import LoadModel
from service.request_bodies import BodyLimits
from service.routes import DIRECT_ROUTERS, OPERATOR_ROUTERS, PROBE_ROUTERS, ROUTERS
from service.routes.direct import DirectRoutes
from service.routes.lattice import PATH as LATTICE_PATH
from service.settings import Settings

if TYPE_CHECKING:
    from service.spans import RequestSpans


def create_app(
    settings: Settings,
    *,
    load: LoadModel | None = None,
    metrics: Metrics | None = None,
    spans: RequestSpans | None = None,
) -> FastAPI:
    """An app that serves the models of its settings once its lifespan has begun.

    If there is to be an admin port, `app.state.admin` is the app for it: it shares the state of
    this one and has no lifespan.

    Args:
        settings: what to serve and how.
        load: (artifact folder, backend) -> model; by default from the folder.
        metrics: where everything is measured; by default new ones.
        spans: what traces requests, if anything does; it is shut down with the app.

    Raises:
        KeyFileError: the file of API keys cannot be read or is wrong.
    """
    metrics = metrics or Metrics()
    draining = threading.Event()
    lag = LoopLag()
    metrics.loop_lag.set_function(lambda: lag.seconds)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        core = await asyncio.to_thread(
            start_core, settings, metrics, draining, _tuned(load or _loader(settings), settings)
        )
        app.state.core = core
        lag.is_idle = lambda: core.engine.is_idle
        watching = asyncio.create_task(lag.watch())
        try:
            yield
        finally:
            watching.cancel()
            draining.set()
            await asyncio.to_thread(core.engine.stop, settings.shutdown_s)
            core.threads.stop()
            if spans is not None:
                await asyncio.to_thread(spans.shutdown)

    keys = KeyRing(settings.api_keys_file)
    has_admin_port = settings.admin_port is not None
    parts = _Parts(settings, metrics, keys, spans, lag)
    app = _dressed(
        (*ROUTERS, *(() if has_admin_port else OPERATOR_ROUTERS)), parts, lifespan=lifespan
    )
    app.state.draining = draining
    app.state.keys = keys
    app.state.admin = None
    if has_admin_port:
        routers = (*OPERATOR_ROUTERS, *PROBE_ROUTERS)
        admin = _dressed(routers, parts)
        admin.state, app.state.admin = app.state, admin
    return app


@dataclass(frozen=True)
class _Parts:
    """What the apps of one process share."""

    settings: Settings
    metrics: Metrics
    keys: KeyRing
    spans: RequestSpans | None
    lag: LoopLag


def _dressed(
    routers: Sequence[APIRouter], parts: _Parts, *, lifespan: Lifespan[FastAPI] | None = None
) -> FastAPI:
    """Routes, and what is done to every request of them."""
    app = ProblemApi(
        title="secondpass",
        summary="Second-pass rescoring of speech recognition n-best lists and lattices.",
        version=version("secondpass"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # there are our own
    )
    app.is_open = parts.keys.is_open
    settings, metrics = parts.settings, parts.metrics
    app.add_middleware(
        DirectRoutes, routers=[router for router in routers if router in DIRECT_ROUTERS]
    )
    app.add_middleware(Guard, keys=parts.keys, metrics=metrics)
    app.add_middleware(
        Envelope,
        metrics=metrics,
        bodies=BodyLimits(settings.max_body_bytes, {LATTICE_PATH: settings.max_lattice_body_bytes}),
        routes=[route for router in routers for route in router.routes if isinstance(route, Route)],
        observers=Observers(
            RequestLog(logs_all=settings.access_log, slow_ms=settings.slow_request_ms),
            parts.spans,
            parts.lag,
        ),
    )
    install_error_handlers(app)
    for router in routers:
        app.include_router(router)
    return app


def _loader(settings: Settings) -> LoadModel:
    def load(folder: Path, backend: str) -> LoadedModel:
        return load_artifact(
            folder,
            backend=backend,
            device=settings.device,
            threads=settings.threads or None,
            pins=settings.pin_threads,
        )

    return load


def _tuned(load: LoadModel, settings: Settings) -> LoadModel:
    """With the weights that files have when it is called, so that a reload takes those."""

    def load_tuned(folder: Path, backend: str) -> LoadedModel:
        tuned = read_default_weights(settings.weights_files)
        return with_weights(load(folder, backend), tuned)

    return load_tuned
