"""POST /v1/rescore/lattice: one lattice as the body, in any format, or several in JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic_core import from_json
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from quantized_lm.errors import LatticeError
from quantized_lm.files import GZIP
from quantized_lm.lattice.formats import LATTICE_FORMATS, format_of_media_type
from service.errors import UnsupportedMediaTypeError
from service.lattice_schemas import LatticeQuery, LatticeRequest, LatticeResponse
from service.latticework import (
    AskedLattices,
    LatticeSource,
    UnreadLattices,
    source_of,
    unpacked,
)
from service.middleware import CLIENT_GONE, IDENTITY, JSON, encoding_of, media_type_of
from service.openapi import ENGINE_PROBLEMS
from service.routes.bodies import require_no_query, validated
from service.routes.exchange import (
    arrival_of,
    core_of,
    request_id_of,
    respond,
    unless_gone,
)
from service.schemas import LmRequest

PATH = "/v1/rescore/lattice"
LISTS = ("silence", "context")  # query parameters that may come several times
DEADLINE_FIELD = "deadline_ms"
NULLS = ("null", "none")
REQUEST = TypeAdapter(LatticeRequest)
QUERY = TypeAdapter(LatticeQuery)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class LatticeRoute(APIRoute):
    """A route whose body is JSON or a lattice; its function is given what was asked."""

    def get_route_handler(self) -> Handler:
        """The function that answers one request."""

        async def answer(request: Request) -> Response:
            core = core_of(request)
            arrival = arrival_of(request)
            _require_readable(request)
            content = await request.body()
            unread = _unread(request, content, core.settings.max_lattice_body_bytes)
            reply = await unless_gone(
                request, core.lattice_rescorer.rescore(unread, request_id_of(request), arrival)
            )
            return Response(status_code=CLIENT_GONE) if reply is None else respond(request, reply)

        return answer


router = APIRouter(route_class=LatticeRoute, tags=["scoring"], responses=ENGINE_PROBLEMS)

EXAMPLE = {
    "lattices": [
        {
            "id": "u1",
            "format": "htk",
            "text": "N=3 L=3\nI=0\nI=1\nI=2\nJ=0 S=0 E=1 W=the a=-1\n"
            "J=1 S=1 E=2 W=weather a=-9.4\nJ=2 S=1 E=2 W=whether a=-9.1\n",
        }
    ],
    "options": {"n_best": 2, "return_words": True},
}
LatticeBody = Annotated[LatticeRequest, Body(examples=[EXAMPLE])]
OTHER_TYPES = {
    one.media_type: {"schema": {"type": "string", "format": "binary"}}
    for one in LATTICE_FORMATS.values()
    if one.media_type != JSON
}
PARAMETERS = [
    {"name": name, "in": "query", "schema": schema}
    for name, schema in LatticeQuery.model_json_schema()["properties"].items()
]


@router.post(
    PATH,
    response_model=LatticeResponse,
    openapi_extra={"parameters": PARAMETERS, "requestBody": {"content": OTHER_TYPES}},
)
async def rescore_lattice(body: LatticeBody) -> None:
    """Find the best word sequences of 1 to 16 lattices under one LM.

    A body of another type than JSON is a lattice in that format; then options, weights, `model`,
    `context` and `final` are query parameters, such as `?n_best=5&lm_scale=0.7`.
    """


def _require_readable(request: Request) -> None:
    """Refuse a body of another type or encoding before it is read.

    Raises:
        UnsupportedMediaTypeError: Content-Type or Content-Encoding says so.
    """
    media_type = media_type_of(request.headers)
    try:
        format_of_media_type(media_type)
    except LatticeError:
        known = ", ".join(one.media_type for one in LATTICE_FORMATS.values())
        raise UnsupportedMediaTypeError(
            f"Content-Type is {media_type or 'absent'!r}; need one of {known}"
        ) from None
    encoding = encoding_of(request.headers)
    if encoding not in (IDENTITY, "gzip"):
        raise UnsupportedMediaTypeError(
            f"Content-Encoding is {encoding!r}; need {IDENTITY} or gzip"
        )


def _unread(request: Request, content: bytes, max_bytes: int) -> UnreadLattices:
    may_ask = (
        content.startswith(GZIP)
        or DEADLINE_FIELD.encode() in content
        or DEADLINE_FIELD in request.query_params
    )
    read = functools.partial(_asked, request, content, max_bytes)
    return UnreadLattices(read, len(content), may_ask)


def _asked(request: Request, content: bytes, max_bytes: int) -> AskedLattices:
    """What a request wants.

    Raises:
        RequestValidationError: it does not fit the schema.
        InputError: it has a query where the body says all, or more faults than can be told.
        LatticeError: it is packed, and damaged or too large.
    """
    media_type = media_type_of(request.headers)
    content = unpacked(content, max_bytes)
    if media_type == JSON:
        require_no_query(request)
        sent = validated(REQUEST, _json(content), "body")
        sources = [source_of(position, one) for position, one in enumerate(sent.lattices)]
        return AskedLattices(sent, sent.options, sources)
    query = validated(QUERY, _fields(request.query_params), "query", strict=False)
    source = LatticeSource(
        content,
        format_of_media_type(media_type),
        context=tuple(query.context),
        final=query.final,
    )
    return AskedLattices(
        LmRequest(model=query.model, weights=query.weights()), query.options(), [source]
    )


def _fields(query: QueryParams) -> dict[str, Any]:
    """Parameters by name; one that is there twice is a list, which only a list may be."""
    fields: dict[str, Any] = {}
    for name in query:
        nulls = () if name in LISTS else NULLS  # lists are of words, and "none" is one
        values = [None if value in nulls else value for value in query.getlist(name)]
        fields[name] = values if name in LISTS or len(values) > 1 else values[0]
    return fields


def _json(content: bytes) -> object:
    """A body as JSON; half a surrogate is none."""
    try:
        return from_json(content)
    except ValueError as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from None
