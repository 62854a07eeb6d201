"""Both clients behind one face, on a network and a clock that are made up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI

from service.client import (
    Ambient,
    AsyncClient,
    Client,
    ClientSettings,
    LatticeReply,
    RescoreReply,
    ScoreReply,
    Stats,
)

Json = dict[str, Any]
URL = "http://service.test"
LISTS: list[Json] = [
    {"id": "u1", "hypotheses": [{"text": "the whether"}, {"text": "the weather"}]},
    {"id": "u2", "hypotheses": [{"text": "nice"}, {"text": "nice"}, {"text": ""}]},
]
PROBE = "/health/ready"
OWN_ID = "(the id of the request)"  # in a scripted answer stands for that


@dataclass
class World:
    """A network that follows a script, and a clock that only it and pauses move.

    Attributes:
        script: what comes of each request in turn; the last entry also of all that follow.
        now_s: the time.
        chance: what every random number is.
        requests: all that were sent, probes apart.
        timeouts: of each of them, as it was sent.
        pauses: all that were made.
        probes: what comes of each probe.
    """

    script: Sequence[Fault | httpx.Response | Exception]
    now_s: float = 100.0
    chance: float = 0.0
    requests: list[httpx.Request] = field(default_factory=list)
    timeouts: list[dict[str, float]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    probes: list[httpx.Response | Exception] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """As httpx.MockTransport's handler."""
        if request.url.path == PROBE:
            return _come_of(self.probes.pop(0), request)
        step = self.script[min(len(self.requests), len(self.script) - 1)]
        self.requests.append(request)
        self.timeouts.append(dict(request.extensions["timeout"]))
        if isinstance(step, Fault):
            self.now_s += step.takes_s
            step = step.result
        return _come_of(step, request)

    def pause(self, duration_s: float) -> None:
        """Let time pass."""
        self.pauses.append(duration_s)
        self.now_s += duration_s


@dataclass(frozen=True)
class Fault:
    """What comes after some time."""

    result: httpx.Response | Exception
    takes_s: float = 0.0


def _come_of(result: httpx.Response | Exception, request: httpx.Request) -> httpx.Response:
    if isinstance(result, Exception):
        raise result
    # A response can be read once; the script may give it several times.
    request_id = request.headers.get("X-Request-ID", "")
    content = result.content.replace(OWN_ID.encode(), request_id.encode())
    told = [(name, value.replace(OWN_ID, request_id)) for name, value in result.headers.items()]
    headers = httpx.Headers(told)
    if "Content-Length" in headers:
        headers["Content-Length"] = str(len(content))
    return httpx.Response(result.status_code, headers=headers, content=content, request=request)


class Driven:
    """One of the clients, called from a test that is not asynchronous."""

    def __init__(self, world: World, *, is_async: bool, **settings: Any) -> None:
        ambient = Ambient(clock=lambda: world.now_s, random=lambda: world.chance)
        transport = httpx.MockTransport(world.answer)
        chosen = ClientSettings(**settings)
        self._loop = asyncio.new_event_loop() if is_async else None
        if is_async:

            async def pause(duration_s: float) -> None:
                world.pause(duration_s)

            self._client: Client | AsyncClient = AsyncClient(
                URL, chosen, transport=lambda: transport, ambient=ambient, sleep=pause
            )
        else:
            self._client = Client(
                URL, chosen, transport=lambda: transport, ambient=ambient, sleep=world.pause
            )

    def rescore(self, asked: Any = LISTS, **options: Any) -> RescoreReply:
        """As Client.rescore."""
        reply: RescoreReply = self._done(lambda: self._client.rescore(asked, **options))
        return reply

    def rescore_lattice(self, lattice: Any, **options: Any) -> LatticeReply:
        """As Client.rescore_lattice."""
        reply: LatticeReply = self._done(lambda: self._client.rescore_lattice(lattice, **options))
        return reply

    def score(self, texts: Any, **options: Any) -> ScoreReply:
        """As Client.score."""
        reply: ScoreReply = self._done(lambda: self._client.score(texts, **options))
        return reply

    @property
    def stats(self) -> Stats:
        """As Client.stats."""
        return self._client.stats

    def let_probe_end(self) -> None:
        """Wait for a probe that is under way."""
        if self._client._probe is not None:
            self._client._probe.join()

    def close(self) -> None:
        """Close the client."""
        if isinstance(self._client, Client):
            self._client.close()
        else:
            self._done(self._client.aclose)
        if self._loop is not None:
            self._loop.close()

    def _done(self, call: Callable[[], Any]) -> Any:
        return call() if self._loop is None else self._loop.run_until_complete(call())

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ThroughPortal(httpx.BaseTransport):
    """An app that runs on another thread's event loop, for a blocking client."""

    def __init__(self, portal: BlockingPortal, app: FastAPI) -> None:
        self._portal = portal
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, sent: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            inner = httpx.Request(sent.method, sent.url, headers=sent.headers, content=sent.read())
            response = await self._transport.handle_async_request(inner)
            content = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=content)

        return self._portal.call(answer)


def reply_to(lists: Sequence[Json], order: Callable[[int], Iterator[int]] | None = None) -> Json:
    """An answer of the service that turns each list around, or orders it otherwise."""
    results = []
    for one in lists:
        sent = one["hypotheses"]
        ranks = order(len(sent)) if order else range(len(sent) - 1, -1, -1)
        hypotheses = [
            {"rank": rank, "input_rank": place + 1, "text": sent[place]["text"], "score": -rank}
            for rank, place in enumerate(ranks, start=1)
        ]
        results.append({"id": one.get("id"), "degraded": [], "hypotheses": hypotheses})
    return {"id": OWN_ID, "results": results, "model": "m"}


def answered(body: Any = None, status: int = 200, **headers: str) -> httpx.Response:
    """A response, by default the one to LISTS; it is to the request unless it says otherwise."""
    if body is None:
        body = reply_to(LISTS)
    content = json.dumps({"id": OWN_ID, **body} if isinstance(body, dict) else body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=content, headers=named)


def refused(
    status: int, code: str, detail: str = "no", *, request_id: str = OWN_ID, **headers: str
) -> httpx.Response:
    """Problem details."""
    faults = [{"pointer": "/weights/x", "message": "unknown"}] if status == 422 else []
    body = {"status": status, "code": code, "detail": detail, "errors": faults}
    body["request_id"] = request_id
    return answered(body, status, **headers)


def texts(reply: RescoreReply) -> list[list[str]]:
    """Of every list."""
    return [[hypothesis.text for hypothesis in one.hypotheses] for one in reply.results]


OWN = [[hypothesis["text"] for hypothesis in one["hypotheses"]] for one in LISTS]
TURNED = [one[::-1] for one in OWN]
