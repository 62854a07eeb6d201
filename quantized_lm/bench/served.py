"""What a request costs beside the forward pass: a real server on loopback, asked one at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from quantized_lm.bench.installs import last_line
from quantized_lm.bench.workers import WorkerError

_START_TIMEOUT_S = 60.0
_REQUEST_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Served:
    """Medians over requests with one n-best list each.

    Attributes:
        hypotheses: in a list, the mean.
        wall_ms: as the client sees it.
        total_ms: as the reply says. forward_ms: of the network in it.
        front_end_ms: the rest of total: tokens, tree, combination, reply.
        http_ms: wall without total: the transport and the client.
        best_only_ms: total of the same requests with `n_best` 1.
        skipped_nodes: tree nodes that those did not run, the mean; None where it is not said.
        tree_nodes: of the full requests, the mean.
    """

    hypotheses: float
    wall_ms: float
    total_ms: float
    forward_ms: float
    front_end_ms: float
    http_ms: float
    best_only_ms: float
    skipped_nodes: float | None
    tree_nodes: float


@dataclass(frozen=True)
class _Reply:
    wall_ms: float
    timing: dict[str, float]
    usage: dict[str, Any]


def measure(model: Path, lists: Sequence[Sequence[str]], passes: int, log: Path) -> Served:
    """Serve a model and ask for every list `passes` times, with and without the whole order.

    Raises:
        WorkerError: the server does not start, or refuses.
    """
    with serving(model, log) as address, httpx.Client(timeout=_REQUEST_TIMEOUT_S) as client:
        ask = _Client(client, f"{address}/v1/rescore")
        for texts in lists:
            ask(texts, {})
        full = [ask(texts, {}) for _ in range(passes) for texts in lists]
        best = [ask(texts, {"n_best": 1}) for _ in range(passes) for texts in lists]
    total = _column(full, "total_ms")
    forward = _column(full, "forward_ms")
    wall = np.array([reply.wall_ms for reply in full])
    skipped = [reply.usage.get("skipped_nodes") for reply in best]
    known = [float(count) for count in skipped if count is not None]
    return Served(
        hypotheses=float(np.mean([len(texts) for texts in lists])),
        wall_ms=float(np.median(wall)),
        total_ms=float(np.median(total)),
        forward_ms=float(np.median(forward)),
        front_end_ms=float(np.median(total - forward)),
        http_ms=float(np.median(wall - total)),
        best_only_ms=float(np.median(_column(best, "total_ms"))),
        skipped_nodes=float(np.mean(known)) if known else None,
        tree_nodes=float(np.mean([reply.usage["tree_nodes"] for reply in full])),
    )


def request_body(texts: Sequence[str], options: dict[str, float]) -> dict[str, Any]:
    """One list to rescore, its acoustic scores falling by rank.

    Args:
        options: of the request, by the API's names.
    """
    hypotheses = [{"text": text, "am_score": -0.1 * rank} for rank, text in enumerate(texts)]
    return {"utterances": [{"hypotheses": hypotheses}], "options": options}


@dataclass(frozen=True)
class _Client:
    client: httpx.Client
    url: str

    def __call__(self, texts: Sequence[str], options: dict[str, float]) -> _Reply:
        body = request_body(texts, options)
        start = time.perf_counter()
        response = self.client.post(self.url, json=body)
        wall_ms = 1e3 * (time.perf_counter() - start)
        if response.status_code != httpx.codes.OK:
            raise WorkerError(f"the server answers {response.status_code}: {response.text[:200]}")
        reply = response.json()
        return _Reply(wall_ms, reply["timing"], reply["usage"])


@contextmanager
def serving(
    model: Path, log: Path, options: Sequence[str] = (), *, timeout_s: float = _START_TIMEOUT_S
) -> Iterator[str]:
    """A server of this model until the block ends; its address.

    Args:
        log: gets what it says. options: of `secondpass serve`, besides the model and the port.
        timeout_s: for it to become ready.

    Raises:
        WorkerError: it does not.
    """
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    given = ("--model", str(model), "--port", str(port))
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-m", "service", "serve", *given, *options],
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_ready(process, address, log, timeout_s)
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(
    process: subprocess.Popen[bytes], address: str, log: Path, timeout_s: float
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{address}/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise WorkerError(f"the server does not start: {last_line(log.read_text(encoding='utf-8'))}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _column(replies: Sequence[_Reply], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([reply.timing[name] for reply in replies])
