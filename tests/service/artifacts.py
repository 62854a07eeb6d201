"""Copies of a real artifact under other names and revisions, and an app that serves them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from quantized_lm.artifact import LoadedModel, load_artifact
from quantized_lm.manifest import read_manifest
from service.api_keys import ApiKey, hash_of, write_keys
from service.app import create_app
from service.settings import Settings
from tests.service.serving import request

SECRET = "sp_of-the-tests"
HEADERS = {"Authorization": f"Bearer {SECRET}"}
LoadModel = Callable[[Path, str], LoadedModel]


def copy_of(artifact: Path, folder: Path, *, note: str = "", golden_shift: float = 0.0) -> Path:
    """The artifact in another folder and under its name, with a revision of its own.

    Args:
        note: put into the provenance, so that the revision changes.
        golden_shift: added to the golden scores; a model that is all right then fails its check.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artifact, folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    golden = json.loads((folder / "golden.json").read_bytes())
    for text in golden["texts"]:
        text["log_prob"] += golden_shift
    content = json.dumps(golden).encode()
    (folder / "golden.json").write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    manifest["files"]["golden.json"] = entry
    total = sum(entry["size_bytes"] for entry in manifest["files"].values())
    manifest |= {"name": folder.name, "size_bytes": total, "sha256": ""}
    manifest["provenance"]["note"] = note
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def load_reference(folder: Path, _backend: str) -> LoadedModel:
    """The real loader, without threads of its own."""
    return load_artifact(folder, backend="reference")


@contextlib.asynccontextmanager
async def administering(
    home: Path, *models: Path, load: LoadModel = load_reference, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """An app that serves models, and a client that may do everything.

    Args:
        home: the model folder.
    """
    keys = home.parent / "keys.json"
    every = ApiKey(
        name="tests", scopes=("score", "admin"), sha256=hash_of(SECRET), created="2026-11-21"
    )
    write_keys(keys, [every])
    chosen = Settings(models=models, model_folder=home, api_keys_file=keys, **settings)
    app = create_app(chosen, load=load)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=HEADERS) as client,
    ):
        yield client, app


def revision(folder: Path) -> str:
    """Of a model folder."""
    return f"sha256:{read_manifest(folder).sha256}"


async def act(client: httpx.AsyncClient, name: str, what: str) -> httpx.Response:
    """POST /v1/admin/models/{name}/{what}."""
    return await client.post(f"/v1/admin/models/{name}/{what}")


async def names_of(client: httpx.AsyncClient) -> list[str]:
    """The models that are served."""
    return [model["id"] for model in (await client.get("/v1/models")).json()["models"]]


def value(app: Any, name: str, **labels: str) -> float | None:
    """A sample of a metric."""
    found: float | None = app.state.core.metrics.registry.get_sample_value(name, labels)
    return found


async def rescored_by(client: httpx.AsyncClient, name: str) -> str:
    """The revision that answers a request."""
    reply = await client.post("/v1/rescore", json=request(model=name))
    assert reply.status_code == 200, reply.text
    return str(reply.json()["revision"])
