"""The second listener: what is on which port, and one process that serves both."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.api_keys import ApiKey, hash_of, write_keys
from service.app import create_app
from service.settings import Settings
from tests.service.artifacts import HEADERS, SECRET
from tests.service.serving import request, running

ROOT = Path(__file__).parents[2]
ADMIN_ONLY = {"/v1/admin/models", "/metrics"}
PROBES = {"/health/live", "/health/ready", "/health/startup"}


def keys(path: Path, *secrets: str) -> Path:
    """A file of keys that may do everything."""
    every = {"scopes": ("score", "admin"), "created": "2026-11-21"}
    write_keys(
        path,
        [
            ApiKey.model_validate({"name": f"key{number}", "sha256": hash_of(secret), **every})
            for number, secret in enumerate(secrets)
        ],
    )
    return path


@contextlib.asynccontextmanager
async def both(**settings: object) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Clients of the main and of the admin port."""
    async with running(admin_port=0, **settings) as (main, app):
        admin_app: FastAPI = app.state.admin
        transport = httpx.ASGITransport(admin_app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:
            yield main, admin


@pytest.mark.anyio
async def test_admin_and_metrics_are_on_the_admin_port_alone(tmp_path: Path) -> None:
    async with both(api_keys_file=keys(tmp_path / "keys.json", SECRET)) as (main, admin):
        for path in ADMIN_ONLY:
            assert (await main.get(path, headers=HEADERS)).status_code == 404, path
            assert (await admin.get(path, headers=HEADERS)).status_code == 200, path
        for path in PROBES:
            assert (await main.get(path)).status_code == 200
            assert (await admin.get(path)).status_code == 200
        scored = await main.post("/v1/rescore", json=request(), headers=HEADERS)
        refused = await admin.post("/v1/rescore", json=request(), headers=HEADERS)
        assert (scored.status_code, refused.status_code) == (200, 404)
        text = (await admin.get("/metrics")).text
        assert 'rescore_requests_total{model="tiny",outcome="ok",route="/v1/rescore"} 1.0' in text
        assert (await admin.get("/v1/admin/models")).status_code == 401


@pytest.mark.anyio
async def test_the_admin_port_needs_a_key_as_well() -> None:
    async with both() as (main, admin):
        assert (await main.post("/v1/rescore", json=request())).status_code == 200
        assert (await admin.get("/v1/admin/models")).status_code == 403
        assert (await admin.get("/metrics")).status_code == 200


@pytest.mark.anyio
async def test_a_drain_begun_on_the_admin_port_is_seen_on_the_main_one(tmp_path: Path) -> None:
    async with both(api_keys_file=keys(tmp_path / "keys.json", SECRET)) as (main, admin):
        assert (await admin.post("/v1/admin/drain", headers=HEADERS)).status_code == 200
        assert (await main.get("/health/ready")).status_code == 503
        assert (await admin.get("/health/ready")).status_code == 503


def test_without_an_admin_port_everything_is_on_the_main_one() -> None:
    app = create_app(Settings())
    assert app.state.admin is None
    paths = set(app.openapi()["paths"])
    assert paths >= ADMIN_ONLY | PROBES | {"/v1/rescore"}


@dataclass
class Process:
    """A server process, and what it has logged."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    has_logged: threading.Condition = field(default_factory=threading.Condition)

    def read(self) -> None:
        """Collect lines until the process has ended."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.has_logged:
                self.lines.append(line)
                self.has_logged.notify_all()

    def wait_for(self, pattern: str) -> str:
        """What the first group of the pattern is in the first line that has it."""
        with self.has_logged:
            assert self.has_logged.wait_for(lambda: re.search(pattern, "".join(self.lines)), 60), (
                self.lines
            )
            found = re.search(pattern, "".join(self.lines))
        assert found is not None
        return found[1]


@contextlib.contextmanager
def process(**environment: str) -> Iterator[Process]:
    """`secondpass serve` with the bundled model."""
    serving = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    found = Process(serving)
    reader = threading.Thread(target=found.read)
    reader.start()
    try:
        yield found
    finally:
        serving.kill()
        serving.wait()
        reader.join()
        assert serving.stderr is not None
        serving.stderr.close()


def test_one_process_serves_both_ports_reads_again_on_sighup_and_closes_both(
    tmp_path: Path,
) -> None:
    file = keys(tmp_path / "keys.json", SECRET)
    environment = {"SECONDPASS_ADMIN_PORT": "0", "SECONDPASS_API_KEYS_FILE": str(file)}
    with process(**environment) as server, httpx.Client(trust_env=False, timeout=60.0) as client:
        admin = server.wait_for(r"admin port on (http://127\.0\.0\.1:\d+)")
        main = server.wait_for(r"running on (http://127\.0\.0\.1:\d+)")
        assert client.get(f"{main}/metrics", headers=HEADERS).status_code == 404
        assert client.get(f"{admin}/metrics").status_code == 200
        listed = client.get(f"{admin}/v1/admin/models", headers=HEADERS).json()["models"]
        assert [one["state"] for one in listed] == ["loaded"]
        scored = client.post(f"{main}/v1/rescore", json=request(), headers=HEADERS)
        assert scored.status_code == 200
        assert client.post(f"{main}/v1/rescore", json=request()).status_code == 401

        keys(file, "sp_another")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("(1 API keys are known)")
        server.wait_for("(model en-small is unchanged)")
        assert client.get(f"{main}/v1/models", headers=HEADERS).status_code == 401
        renewed = {"Authorization": "Bearer sp_another"}
        assert client.get(f"{main}/v1/models", headers=renewed).status_code == 200

        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        for port in (main, admin):
            with pytest.raises(httpx.TransportError):
                client.get(f"{port}/health/live")
    written = "".join(server.lines)
    assert SECRET not in written
    assert "sp_another" not in written
    assert "Traceback" not in written
