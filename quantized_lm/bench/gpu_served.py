"""What a request costs on a GPU: a random model behind the real server, on loopback, by stage."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from quantized_lm.bench.gpu_lists import cut, write_random
from quantized_lm.bench.random_artifact import as_texts, write_random_artifact
from quantized_lm.bench.served import request_body, serving
from quantized_lm.bench.weights import SIZES, Size
from quantized_lm.bench.workers import WorkerError

ONE_CLIENT = "one client"
WALL = "wall"
_STAGES = ("queue", "tokenize", "forward", "combine")
_LOAD = re.compile(r"^rescore_model_load_seconds{.*} ([\d.e+-]+)$", re.MULTILINE)
_DEADLINE_MS = 30_000.0
_TIMEOUT_S = 60.0
# Until then kernels are compiled, if the lists of this size were not timed before.
_START_TIMEOUT_S = 400.0


@dataclass(frozen=True)
class ServiceOptions:
    """What is asked.

    Attributes:
        name, size: of the model, and of the lists.
        requests: by one client that waits for each reply, after `warm` that do not count.
        rates: requests a second that come whether or not others were answered. seconds: each.
        senders: connections of these. longest: tokens of a hypothesis; the rest is cut off.
    """

    name: str = "b"
    size: Size = SIZES["b"]
    requests: int = 500
    warm: int = 30
    rates: tuple[float, ...] = (50.0, 200.0, 500.0)
    seconds: float = 15.0
    senders: int = 64
    longest: int | None = None


@dataclass(frozen=True)
class StageTime:
    """One stage over all replies.

    Attributes:
        stage: one of the reply's, "other" of its total, "http", the time outside it, or "wall".
        slowest_ms: the 99th percentile.
    """

    stage: str
    median_ms: float
    slowest_ms: float


@dataclass(frozen=True)
class ServiceTime:
    """One kind of load.

    Attributes:
        load: ONE_CLIENT, or a rate in words. rate: requests a second, 0 for one client.
        refused: answers that were no result.
    """

    load: str
    rate: float
    answered: int
    refused: int
    stages: tuple[StageTime, ...]

    def of(self, stage: str) -> StageTime | None:
        """One stage; None where nothing was answered."""
        return next((one for one in self.stages if one.stage == stage), None)


@dataclass(frozen=True)
class ServiceReport:
    """A model as it was served.

    Attributes:
        model, backend, residency: as `/v1/models` says. parameters: of the model.
        load_s: reading, checking and laying out the model, graphs included. first_ms: the first
            request's wall time. tree_nodes: of a request, the mean.
    """

    model: str
    backend: str
    residency: str
    parameters: int
    load_s: float
    first_ms: float
    tree_nodes: float
    times: tuple[ServiceTime, ...]


@dataclass(frozen=True)
class _Reply:
    status: int
    wall_ms: float
    record: dict[str, dict[str, float]]


def measure(options: ServiceOptions, folder: Path) -> ServiceReport:
    """Make the model, serve it on the GPU, ask.

    Raises:
        WorkerError: the server does not start, or refuses a single client.
    """
    size = options.size
    artifact = folder / f"artifact-{options.name}"
    files = write_random(options.name, size, folder)
    write_random_artifact(options.name, size.num_heads, files, artifact)
    wishes = {"deadline_ms": _DEADLINE_MS}
    bodies = [
        json.dumps(request_body(as_texts(one), wishes)).encode()
        for one in cut(size.draw_lists(), options.longest)
    ]
    log = folder / "server.log"
    with (
        serving(artifact, log, ("--device", "cuda"), timeout_s=_START_TIMEOUT_S) as address,
        closing(_Client(address)) as client,
    ):
        return _ask(client, bodies, options)


def _ask(client: _Client, bodies: Sequence[bytes], options: ServiceOptions) -> ServiceReport:
    (model,) = json.loads(client.text("/v1/models"))["models"]
    first = _answered(client.ask(bodies[0]))
    for body in itertools.islice(itertools.cycle(bodies), options.warm):
        client.ask(body)
    asked = itertools.islice(itertools.cycle(bodies), options.requests)
    replies = [_answered(client.ask(body)) for body in asked]
    times = [_summary(ONE_CLIENT, 0.0, replies)]
    for rate in options.rates:
        came = _open_loop(client, bodies, rate, options)
        times.append(_summary(f"{rate:g} requests/s", rate, came))
    return ServiceReport(
        model=model["id"],
        backend=model["backend"],
        residency=model["residency"],
        parameters=model["parameters"],
        load_s=_load_s(client.text("/metrics")),
        first_ms=first.wall_ms,
        tree_nodes=float(np.mean([reply.record["usage"]["tree_nodes"] for reply in replies])),
        times=tuple(times),
    )


class _Client:
    """Asks one server; each thread over a connection of its own."""

    def __init__(self, address: str) -> None:
        self._host = urlsplit(address).netloc
        self._own = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def ask(self, body: bytes, planned_s: float | None = None) -> _Reply:
        """One request; its time counts from when it was to be sent."""
        start = time.perf_counter() if planned_s is None else planned_s
        status, content = self._exchange("POST", "/v1/rescore", body)
        wall_ms = 1e3 * (time.perf_counter() - start)
        return _Reply(status, wall_ms, json.loads(content))

    def text(self, path: str) -> str:
        """A page."""
        return self._exchange("GET", path, None)[1].decode()

    def close(self) -> None:
        """Every thread's connection."""
        for connection in self._connections:
            connection.close()

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT_S)
            self._own.connection = connection
            self._connections.append(connection)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


def _open_loop(
    client: _Client, bodies: Sequence[bytes], rate: float, options: ServiceOptions
) -> list[_Reply]:
    """Send at an even rate, each when its time has come."""
    planned = [number / rate for number in range(max(int(rate * options.seconds), 1))]
    with ThreadPoolExecutor(options.senders) as senders:
        begin = time.perf_counter()
        asked = []
        for body, due in zip(itertools.cycle(bodies), planned, strict=False):
            time.sleep(max(begin + due - time.perf_counter(), 0.0))
            asked.append(senders.submit(partial(client.ask, body, begin + due)))
        return [one.result() for one in asked]


def _answered(reply: _Reply) -> _Reply:
    if reply.status != http.client.OK:
        raise WorkerError(f"the server answers {reply.status}: {str(reply.record)[:200]}")
    return reply


def _summary(load: str, rate: float, replies: Sequence[_Reply]) -> ServiceTime:
    good = [reply for reply in replies if reply.status == http.client.OK]
    stages = tuple(_stages(good)) if good else ()
    return ServiceTime(load, rate, len(good), len(replies) - len(good), stages)


def _stages(replies: Sequence[_Reply]) -> Iterator[StageTime]:
    timing = [reply.record["timing"] for reply in replies]
    columns = {stage: np.array([one[f"{stage}_ms"] for one in timing]) for stage in _STAGES}
    total = np.array([one["total_ms"] for one in timing])
    wall = np.array([reply.wall_ms for reply in replies])
    columns["other"] = total - sum(columns.values())
    columns |= {"http": wall - total, WALL: wall}
    for stage, column in columns.items():
        median, slowest = np.quantile(column, [0.5, 0.99])
        yield StageTime(stage, float(median), float(slowest))


def _load_s(metrics: str) -> float:
    found = _LOAD.search(metrics)
    assert found is not None
    return float(found[1])
