"""What routes are given: the running core, and the headers of one request and its reply."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import Depends, Request, Response

from service.core import Core
from service.metrics import SEVERAL_MODELS
from service.schemas import RescoreResponse, ScoreResponse
from service.timing import server_timing

Reply = TypeVar("Reply", RescoreResponse, ScoreResponse)


class Exchange:
    """One request and the response that FastAPI is going to send."""

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response

    @property
    def request_id(self) -> str:
        """The client's X-Request-ID, or ours."""
        return str(self._request.state.request_id)

    def annotated(self, reply: Reply) -> Reply:
        """The reply, its revision and times also in the headers and its model in the metrics."""
        self._response.headers["X-Model-Revision"] = reply.revision
        self._response.headers["Server-Timing"] = server_timing(reply.timing)
        self._request.state.model = SEVERAL_MODELS if "," in reply.model else reply.model
        return reply


async def _core(request: Request) -> Core:
    core: Core = request.app.state.core
    return core


CoreDep = Annotated[Core, Depends(_core)]
ExchangeDep = Annotated[Exchange, Depends()]
