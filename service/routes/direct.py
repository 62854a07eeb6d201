"""The short way of the requests that come most: what is posted to score lists or texts.

The framework's routing, dependencies and exit stacks cost such a request more than all that the
event loop does for it otherwise. The framework has the rest: other methods, and the document.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from service.middleware import CLIENT_GONE, inner_path, require_json
from service.routes.bodies import read_json, require_few, require_no_query, validated
from service.routes.exchange import arrival_of, core_of, unless_gone

METHOD = "POST"


class DirectRoute:
    """A route whose function takes `body` and `request` and makes the response itself.

    pydantic reads the body straight from its bytes. What it refuses is read again by Python, which
    takes more (UTF-16, NaN): pointers to faults are made from what that one read.

    Args:
        route: what the framework knows of it; requests are counted as its own.
    """

    def __init__(self, route: APIRoute) -> None:
        self.route = route
        self._function: Callable[..., Any] = route.endpoint
        self._schema: TypeAdapter[Any] = TypeAdapter(get_type_hints(route.endpoint)["body"])

    async def answer(self, request: Request) -> Response:
        """Answer one request, unless its client is gone.

        Raises:
            UnsupportedMediaTypeError: its headers say that its body is not plain JSON.
            RequestValidationError: the body is not what the function takes.
            InputError: so, in more places than can be told; or a header is wrong, or there is
                a query.
            OverloadedError: it would be refused whatever its body says.
        """
        require_json(request)
        require_no_query(request)
        content = await request.body()
        _require_hope(request, content)
        started_s = time.perf_counter()
        body = self._read(content)
        core_of(request).metrics.observe_stage("parse", time.perf_counter() - started_s)
        response: Response | None = await unless_gone(request, self._function(body, request))
        return Response(status_code=CLIENT_GONE) if response is None else response

    def _read(self, content: bytes) -> Any:
        try:
            return self._schema.validate_json(content)
        except ValidationError as error:
            require_few(error)
        return validated(self._schema, read_json(content), "body")


class DirectRoutes:
    """ASGI middleware that answers what is posted to some routes.

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
        app = self._app
        if scope["type"] == "http" and scope["method"] == METHOD:
            direct = self._routes.get(inner_path(scope))
            if direct is not None:
                scope["route"] = direct.route
                app = await direct.answer(Request(scope, receive, send))
        await app(scope, receive, send)


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
