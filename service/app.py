"""The ASGI app: middleware, routes, and a lifespan that loads models and starts the engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI

from quantized_lm.artifact import LoadedModel, load_artifact
from service.core import start_core
from service.errors import install_error_handlers
from service.metrics import Metrics
from service.middleware import Envelope
from service.openapi import ProblemApi
from service.registry import LoadModel
from service.routes import ROUTERS
from service.routes.lattice import PATH as LATTICE_PATH
from service.settings import Settings


def create_app(settings: Settings, *, load: LoadModel | None = None) -> FastAPI:
    """An app that serves the models of its settings once its lifespan has begun.

    Args:
        settings: what to serve and how.
        load: (artifact folder, backend) -> model; by default from the folder.
    """
    metrics = Metrics()
    draining = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        core = await asyncio.to_thread(
            start_core, settings, metrics, draining, load or _loader(settings)
        )
        app.state.core = core
        try:
            yield
        finally:
            draining.set()
            await asyncio.to_thread(core.engine.stop)

    app = ProblemApi(
        title="secondpass",
        summary="Second-pass rescoring of speech recognition n-best lists and lattices.",
        version=version("secondpass"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.draining = draining
    app.add_middleware(
        Envelope,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        body_bytes_of={LATTICE_PATH: settings.max_lattice_body_bytes},
    )
    install_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


def _loader(settings: Settings) -> LoadModel:
    def load(folder: Path, backend: str) -> LoadedModel:
        return load_artifact(
            folder, backend=backend, threads=settings.threads or None, pins=settings.pin_threads
        )

    return load
