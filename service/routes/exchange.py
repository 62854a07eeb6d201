"""What routes are given: the running core, one request and its reply, and how its body is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from service.core import Core
from service.metrics import SEVERAL_MODELS
from service.middleware import is_plain_json
from service.schemas import RescoreResponse, ScoreResponse
from service.timing import server_timing

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


def respond(request: Request, reply: RescoreResponse | ScoreResponse) -> Response:
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


async def _core(request: Request) -> Core:
    return core_of(request)


CoreDep = Annotated[Core, Depends(_core)]
