"""Disks that are full, files that are damaged: what is served goes on being served."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from quantized_lm.artifact import bundled_path
from tests.chaos.servers import (
    FAKE,
    PATIENCE_S,
    ROOT,
    Process,
    environment,
    free_port,
    started,
    wait_until,
)
from tests.service.artifacts import copy_of
from tests.service.serving import request

pytestmark = pytest.mark.real_clock
FULL = Path("/dev/full")  # every write to it says that there is no space
REQUESTS = 20
MODEL = "en-small"


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_log_that_cannot_be_written_costs_lines_and_no_answers() -> None:
    port = free_port()
    with FULL.open("w", encoding="utf-8") as full:
        process = subprocess.Popen(
            [sys.executable, *FAKE, "0"],
            stderr=full,
            cwd=ROOT,
            text=True,
            env=environment(port=port, access_log=True),
        )
        with contextlib.suppress(OSError):  # what could not be written is tried again
            full.close()
    server = Process(process, f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: is_ready(server))
        with server.client() as client:
            statuses = {
                client.post("/v1/rescore", json=request()).status_code for _ in range(REQUESTS)
            }
        assert statuses == {200}
        wait_until(lambda: server.metric("rescore_log_failures_total") >= REQUESTS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_model_that_is_damaged_before_a_reload_leaves_the_old_one_serving(
    tmp_path: Path,
) -> None:
    bundled = bundled_path(MODEL)
    folder = Path(shutil.copytree(bundled, tmp_path / MODEL))
    with started("-m", "service", "serve", "--model", str(folder), threads=1) as server:
        old = revision(server)
        copy_of(bundled, folder, note="new")
        weights = folder / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: reloads(server, "failed") == 1)
        assert revision(server) == old
        wait_until(lambda: "weights.safetensors" in server.log)

        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: reloads(server, "ok") == 1)
        assert revision(server) not in ("", old)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0


def revision(server: Process) -> str:
    """Of the model that answers."""
    with server.client() as client:
        answer = client.post("/v1/rescore", json=request())
    assert answer.status_code == 200
    return answer.headers["X-Model-Revision"]


def reloads(server: Process, outcome: str) -> float:
    """Ended so."""
    return server.metric("rescore_model_reloads_total", model=MODEL, outcome=outcome)


def is_ready(server: Process) -> bool:
    """Whether it answers that it is."""
    assert server.process.poll() is None
    try:
        with server.client() as client:
            return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False
