"""What routes are given: the running core, one request and its reply."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel

from service.core import Core
from service.deadlines import TIMEOUT_HEADER, Arrival, parse_timeout_ms
from service.lattice_schemas import LatticeResponse
from service.metrics import SEVERAL_MODELS
from service.schemas import FailedUtterance, RescoreResponse, ScoreResponse
from service.timing import server_timing

Reply = TypeVar("Reply")
LISTENS_AFTER_S = 0.02


def core_of(request: Request) -> Core:
    """What answers requests."""
    core: Core = request.app.state.core
    return core


def request_id_of(request: Request) -> str:
    """The client's X-Request-ID, or ours."""
    return str(request.state.request_id)


def arrival_of(request: Request) -> Arrival:
    """When it came, and how long its sender can wait.

    Raises:
        InputError: the header that says so is no time.
    """
    state = request.scope["state"]
    if "arrival" not in state:
        timeout = request.headers.get(TIMEOUT_HEADER)
        timeout_ms = None if timeout is None else parse_timeout_ms(timeout)
        state["arrival"] = Arrival(state["received_s"], timeout_ms)
    arrival: Arrival = state["arrival"]
    return arrival


def respond(request: Request, reply: RescoreResponse | ScoreResponse | LatticeResponse) -> Response:
    """The reply as JSON; revision and times also in the headers, the model in the metrics."""
    replied_ns = time.time_ns()
    started_s = time.perf_counter()
    content = orjson.dumps(reply, BaseModel.model_dump)
    wrote_s = time.perf_counter() - started_s
    metrics = core_of(request).metrics
    metrics.once_sent(metrics.observe_stage, "serialize", wrote_s)
    arrival_of(request).lost.unanswered.clear()
    request.scope["state"].update(
        model=SEVERAL_MODELS if "," in reply["model"] else reply["model"],
        timing=reply["timing"],
        usage=reply["usage"],
        replied_ns=replied_ns,
        is_degraded=any(
            not isinstance(result, FailedUtterance) and result.get("degraded")
            for result in reply["results"]
        ),
    )
    headers = {
        "X-Model-Revision": reply["revision"],
        "Server-Timing": server_timing(reply["timing"]),
    }
    return Response(content, headers=headers, media_type="application/json")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Reply]) -> Reply | None:
    """What the work comes to; None, and no more of it is done, once the client is gone.

    The body has to be read before. Nobody listens for short work, which costs it a timer alone.
    """
    client = _Client(request)
    listening = asyncio.get_running_loop().call_later(LISTENS_AFTER_S, client.listen)
    try:
        return await work
    except asyncio.CancelledError:
        if client.is_gone:
            client.resume()
            return None
        raise
    finally:
        listening.cancel()
        client.forget()


class _Client:
    """Cancels the task that it is made in when the client hangs up."""

    def __init__(self, request: Request) -> None:
        self.is_gone = False
        self._request = request
        self._working = asyncio.current_task()
        self._listening: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Begin to."""
        self._listening = asyncio.ensure_future(self._until_disconnect())

    def forget(self) -> None:
        """Let the task be."""
        listening, self._listening = self._listening, None
        if listening is not None:  # a canceled task holds its frame, and with it this object
            listening.cancel()

    def resume(self) -> None:
        """Make the task forget that it was canceled; before Python 3.11 none remembers."""
        if self._working is not None and sys.version_info >= (3, 11):
            self._working.uncancel()

    async def _until_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        if self._working is not None:
            self.is_gone = True
            self._working.cancel()


async def _core(request: Request) -> Core:
    return core_of(request)


CoreDep = Annotated[Core, Depends(_core)]
