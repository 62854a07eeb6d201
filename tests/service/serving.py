"""An app around fake models, asked without a socket."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI

from quantized_lm.artifact import LoadedModel
from quantized_lm.lattice.formats import LATTICE_FORMATS
from quantized_lm.lattice.lattice import Lattice
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeLoader, fake_loaded

Json = dict[str, Any]
PATIENT_MS = 30_000.0  # a slow machine is no reason for another answer
_OPEN = threading.Event()


@contextlib.asynccontextmanager
async def running(
    *models: LoadedModel, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """An app whose lifespan has begun, and a client of it; by default with one model, "tiny"."""
    served = models or (fake_loaded(),)
    settings = {"default_deadline_ms": PATIENT_MS, **settings}
    app = create_app(
        Settings(models=tuple(Path(model.name) for model in served), **settings),
        load=FakeLoader(*served),
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        try:
            yield client, app
        finally:  # a test that failed at a closed gate must not keep the engine from ending
            for model in served:
                getattr(model.model, "gate", _OPEN).set()


def utterance(*texts: str, **fields: Any) -> Json:
    """An n-best list of these texts; am_score falls by 1 from one to the next."""
    hypotheses = [{"text": text, "am_score": -1.0 - rank} for rank, text in enumerate(texts)]
    return {"hypotheses": hypotheses, **fields}


def request(*utterances: Json, **fields: Any) -> Json:
    """A body of /v1/rescore."""
    return {"utterances": list(utterances or [utterance("the cat sat", "a cat sat")]), **fields}


def lattice_entry(lattice: Lattice) -> Json:
    """An entry of `lattices` in a body of /v1/rescore/lattice."""
    return {"lattice": json.loads(LATTICE_FORMATS["k2-json"].write([lattice]))}


class Caller:
    """Sends bodies to an app that runs on another thread's event loop."""

    def __init__(self, portal: BlockingPortal, client: httpx.AsyncClient) -> None:
        self._portal = portal
        self._client = client

    def post(
        self, path: str, content: bytes, media_type: str = "application/json"
    ) -> httpx.Response:
        """The answer to one body."""

        async def send() -> httpx.Response:
            headers = {"Content-Type": media_type}
            return await self._client.post(path, content=content, headers=headers)

        return self._portal.call(send)
