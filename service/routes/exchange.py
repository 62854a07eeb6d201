"""What routes are given: the running core, one request and its reply, and how its body is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar, get_type_hints

from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from service.core import Core
from service.lattice_schemas import LatticeResponse
from service.metrics import SEVERAL_MODELS
from service.middleware import is_plain_json
from service.schemas import RescoreResponse, ScoreResponse
from service.timing import server_timing

Reply = TypeVar("Reply")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class BodyRoute(APIRoute):
    """A route whose function takes the body and the request, and makes the response itself.

    pydantic reads the body straight from its bytes. Whatever it refuses goes the way of FastAPI,
    which has the last word: Python's JSON reader accepts more (UTF-16, NaN), and the errors and
    their pointers are made from what that one read.
    """

    def get_route_handler(self) -> Handler:
        """The function that answers one request."""
        fastapi_answer = super().get_route_handler()
        read = TypeAdapter(get_type_hints(self.endpoint)["body"]).validate_json

        async def answer(request: Request) -> Response:
            if not is_plain_json(request.headers):
                return await fastapi_answer(request)
            try:
                content = await request.body()
                started_s = time.perf_counter()
                body = read(content)
            except (ClientDisconnect, ValidationError):
                return await fastapi_answer(request)
            core_of(request).metrics.observe_stage("parse", time.perf_counter() - started_s)
            response: Response = await self.endpoint(body, request)
            return response

        return answer


def core_of(request: Request) -> Core:
    """What answers requests."""
    core: Core = request.app.state.core
    return core


def request_id_of(request: Request) -> str:
    """The client's X-Request-ID, or ours."""
    return str(request.state.request_id)


def respond(request: Request, reply: RescoreResponse | ScoreResponse | LatticeResponse) -> Response:
    """The reply as JSON; revision and times also in the headers, the model in the metrics."""
    started_s = time.perf_counter()
    content = to_json(reply)
    core_of(request).metrics.observe_stage("serialize", time.perf_counter() - started_s)
    request.state.model = SEVERAL_MODELS if "," in reply["model"] else reply["model"]
    headers = {
        "X-Model-Revision": reply["revision"],
        "Server-Timing": server_timing(reply["timing"]),
    }
    return Response(content, headers=headers, media_type="application/json")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Reply]) -> Reply | None:
    """What the work comes to; None, and no more of it is done, once the client is gone.

    The body has to be read before.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        done, _ = await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working in done else None
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)  # until the engine knows as well


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _core(request: Request) -> Core:
    return core_of(request)


CoreDep = Annotated[Core, Depends(_core)]
