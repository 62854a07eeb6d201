"""The short way of the requests that come most: plain JSON that is right, to a route that scores.

The framework's routing, dependencies and exit stacks cost such a request more than all that the
event loop does for it otherwise. Whatever is not as expected goes the framework's way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.middleware import CLIENT_GONE, inner_path, is_plain_json
from service.routes.exchange import arrival_of, core_of, unless_gone

METHOD = "POST"


class DirectRoute:
    """A route whose function takes `body` and `request` and makes the response itself.

    Args:
        route: what the framework knows of it; requests are counted as its own.
    """

    def __init__(self, route: APIRoute) -> None:
        self.route = route
        self._function: Callable[..., Any] = route.endpoint
        self._read = TypeAdapter(get_type_hints(route.endpoint)["body"]).validate_json

    async def answer(self, request: Request, content: bytes) -> Response:
        """Answer one request, unless its client is gone.

        Raises:
            ValidationError: the body is not what the function takes.
            OverloadedError: it would be refused whatever its body says.
        """
        _require_hope(request, content)
        started_s = time.perf_counter()
        body = self._read(content)
        core_of(request).metrics.observe_stage("parse", time.perf_counter() - started_s)
        response: Response | None = await unless_gone(request, self._function(body, request))
        return Response(status_code=CLIENT_GONE) if response is None else response


class DirectRoutes:
    """ASGI middleware that answers what is posted to some routes, where it is plain JSON.

    pydantic reads the body straight from its bytes. Whatever it refuses is handed on as it came to
    the framework, which has the last word: Python's JSON reader accepts more (UTF-16, NaN), and
    the errors and their pointers are made from what that one read.

    Args:
        app: what answers everything else.
        routers: whose routes these are; each has a path of its own, without parameters.
    """

    def __init__(self, app: ASGIApp, *, routers: Sequence[APIRouter]) -> None:
        self._app = app
        self._routes = {
            route.path: DirectRoute(route)
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = None
        if scope["type"] == "http" and scope["method"] == METHOD:
            direct = self._routes.get(inner_path(scope))
            if direct is not None:
                request = Request(scope, receive, send)
                if is_plain_json(request.headers):
                    scope["route"] = direct.route
                    content = await request.body()
                    try:
                        response = await direct.answer(request, content)
                    except ValidationError:
                        receive = _again(content, receive)
        await (self._app if response is None else response)(scope, receive, send)


def _require_hope(request: Request, content: bytes) -> None:
    """Refuse what would be refused anyway before it is read: under overload most time goes there.

    A body that may name a deadline or a wish of its own is read.

    Raises:
        InputError: a header is wrong.
        OverloadedError: too much waits.
    """
    core, arrival = core_of(request), arrival_of(request)
    if core.engine.is_idle:
        return
    if b"deadline_ms" not in content and b"on_overload" not in content:
        deadline_s = core.deadlines.at_s(arrival, None, "")
        names = list(core.registry.models)
        core.engine.require_hope(deadline_s, names if len(names) == 1 else ())


def _again(content: bytes, receive: Receive) -> Receive:
    """What gives a body that was read a second time, and then what comes after it."""
    bodies = [content]

    async def receive_again() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return receive_again
