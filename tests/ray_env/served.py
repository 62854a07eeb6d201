"""In Ray's environment: the service on two nodes, asked while a replica and a node go away.

Tells what a plain app and Ray's replicas answer, and what became of all calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from service.app import create_app
from service.client import Client, ClientSettings
from service.ray_serve import NAME, replica_settings
from tests.ray_env.clusters import two_nodes
from tests.ray_env.telling import tell

CONFIG = Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml"
LISTS = [
    {
        "id": f"u{index}",
        "hypotheses": [
            {"text": f"{start} going to see the {end}", "am_score": -1.0 - 0.1 * rank}
            for rank, (start, end) in enumerate(
                (start, end)
                for start in ("they were", "there were", "we are")
                for end in ("whether", "weather", "wether", index)
            )
        ],
    }
    for index in ("sea", "lake", "city", "hills")
]
CALLERS = 4
PATIENT = ClientSettings(
    deadline_ms=60_000,
    max_attempts=100,
    backoff_ms=100,
    max_backoff_ms=1000,
    failures_to_open=1000,
    max_connections=8,
)
COMPARED = ("results", "formula", "model", "revision", "weights")
STARTS_S = 240.0


def main() -> None:
    """Tell the findings."""
    plain = asyncio.run(_plain())
    with two_nodes() as (cluster, second):
        url = _deploy()
        replicas = _replicas()
        served = [_reply(url) for _ in range(4)]
        with _load(url) as outcomes:
            _until(lambda: sum(outcomes.values()) >= 20, "the first calls")
            victim = min(replicas)
            os.kill(victim, signal.SIGKILL)
            killed = sum(outcomes.values())
            _until(lambda: len(_replicas() - {victim}) == 2, "a new replica")
            _until(lambda: sum(outcomes.values()) >= killed + 20, "calls after the kill")
            cluster.remove_node(second, allow_graceful=False)
            _until(lambda: _nodes() == 1, "the loss of the node, noticed by the other")
            removed = sum(outcomes.values())
            _until(lambda: sum(outcomes.values()) >= removed + 40, "calls after the node is gone")
        again = _reply(url)
    tell({"plain": plain, "served": served, "again": again, "outcomes": outcomes})


async def _plain() -> Any:
    app = create_app(replica_settings({"threads": 1}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://plain") as client,
    ):
        body = {"utterances": LISTS, "options": {"deadline_ms": 30_000}}
        response = await client.post("/v1/rescore", json=body)
        return {name: response.json()[name] for name in COMPARED}


def _deploy() -> str:
    """deploy/ray/serve.yaml with replicas that fit this machine, one on each node at least."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    del config["http_options"], config["proxy_location"]
    (application,) = config["applications"]
    application["args"] = {"threads": 1}
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"]["num_cpus"] = 1
    deployment["max_replicas_per_node"] = 1
    deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
    _until(lambda: serve.status().applications[NAME].status == "RUNNING", "the application")
    return f"http://127.0.0.1:{port}"


def _replicas() -> set[int]:
    """Processes of replicas: children of the raylets that this process has started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if b"ServeReplica:" in (folder / "cmdline").read_bytes():
                raylet = _parent_of(int(folder.name))
                if _parent_of(raylet) == os.getpid():
                    found.add(int(folder.name))
    return found


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])


def _nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def _reply(url: str) -> Any:
    with Client(url, PATIENT) as client:
        reply = client.rescore(LISTS, options={"deadline_ms": 30_000})
    return {name: reply.body.get(name) for name in COMPARED}


@contextlib.contextmanager
def _load(url: str) -> Iterator[Counter[str]]:
    """Callers without a pause; what became of their calls."""
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    over = threading.Event()

    def call(client: Client) -> None:
        while not over.is_set():
            reply = client.rescore(LISTS, options={"deadline_ms": 30_000})
            texts = [sorted(h.text for h in one.hypotheses) for one in reply.results]
            is_whole = texts == [sorted(h["text"] for h in one["hypotheses"]) for one in LISTS]  # type: ignore[index]
            with lock:
                outcomes["lost" if not is_whole else ",".join(reply.degraded) or "answered"] += 1

    with Client(url, PATIENT) as client:
        callers = [threading.Thread(target=call, args=(client,)) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            yield outcomes
        finally:
            over.set()
            for caller in callers:
                caller.join()
        print(client.stats, file=sys.stderr)  # noqa: T201


def _until(is_so: Callable[[], bool], what: str) -> None:
    ends_s = time.monotonic() + STARTS_S
    while not is_so():
        if time.monotonic() > ends_s:
            raise TimeoutError(f"{what}: not within {STARTS_S} s")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
