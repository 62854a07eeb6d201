"""Exception class -> HTTP status and code, in one table, and the one handler that uses it.

Every error body is RFC 9457 problem details, `application/problem+json`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from quantized_lm.components import escape
from quantized_lm.errors import (
    ArtifactError,
    InputError,
    LatticeError,
    MissingScoreError,
    NonFiniteError,
    OovError,
    PresetError,
    SecondpassError,
    TooLongError,
    TooManyArcsError,
)
from service.schemas import ErrorItem, Problem, RequestProblem

logger = logging.getLogger(__name__)
MAX_LISTED_ERRORS = 32
UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")  # of a model, of a dataclass
# Where pydantic names no remedy, or a class of ours.
MESSAGES: Mapping[str, str] = {
    **dict.fromkeys(UNKNOWN_FIELD, "is not known; /docs lists the fields that are"),
    **dict.fromkeys(("model_type", "dataclass_type"), "need an object"),
}
LM_SCORE = ("hypotheses", "lm_score")  # unknown only where graph_score is given as well
PROBLEM_JSON = "application/problem+json"


class ModelNotFoundError(SecondpassError):
    """The request names a model that is not loaded."""


class NotReadyError(SecondpassError):
    """The engine is not running."""


class DrainingError(SecondpassError):
    """The server is shutting down and takes no new work."""


class OverloadedError(SecondpassError):
    """More work waits than can be done in time.

    Args:
        retry_after_s: when it is expected to be done.
    """

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(SecondpassError):
    """The request's deadline passed, or would pass before the LM is done."""


class ModelLoadingError(SecondpassError):
    """The model is being loaded, reloaded or unloaded by somebody else."""


class MemoryBudgetError(SecondpassError):
    """There is not enough memory to load the model beside what is loaded."""


class LastModelError(SecondpassError):
    """Without this model there would be nothing to serve."""


class OverBudgetError(InputError):
    """One list needs more tree nodes than one forward pass may have."""


class NotHttpError(SecondpassError):
    """What came over a connection is no HTTP."""


class PortError(SecondpassError):
    """An address cannot be listened on."""


class ModelConflictError(ArtifactError):
    """Two artifacts have one name, or the budget is below what a model's longest text needs."""


class BodyTooLargeError(HTTPException):
    """The body is larger than the server allows. An HTTPException, which FastAPI lets through."""

    def __init__(self, message: str) -> None:
        super().__init__(status_code=413, detail=message)


class UnauthenticatedError(HTTPException):
    """The request has no API key that is known."""

    def __init__(self, message: str) -> None:
        super().__init__(401, message, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenError(HTTPException):
    """The route needs a scope that the API key does not have."""

    def __init__(self, message: str) -> None:
        super().__init__(403, message)


class QuotaError(HTTPException):
    """The API key has used up its share for now."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(429, message, headers={"Retry-After": str(retry_after_s)})


class UnsupportedMediaTypeError(HTTPException):
    """The body is of a type, or packed in a way, that the route does not read."""

    def __init__(self, message: str) -> None:
        super().__init__(status_code=415, detail=message)


@dataclass(frozen=True)
class ErrorKind:
    """How an exception is told to the client.

    Attributes:
        status: HTTP status.
        code: stable name, documented in REFERENCE.md.
        title: what this code always means.
        retry_after_s: value of the Retry-After header, if the request may be sent again.
    """

    status: int
    code: str
    title: str
    retry_after_s: int | None = None


MALFORMED = ErrorKind(400, "malformed_json", "The body is not JSON")
INVALID = ErrorKind(422, "invalid_field", "The request does not fit the schema")
NON_FINITE = ErrorKind(422, "non_finite", "A number is NaN or infinite")
INTERNAL = ErrorKind(500, "internal", "The server failed")

ERRORS: Mapping[type[Exception], ErrorKind] = {
    InputError: INVALID,
    RequestValidationError: INVALID,
    NonFiniteError: NON_FINITE,
    MissingScoreError: ErrorKind(422, "missing_score", "A weight needs a score that is absent"),
    TooLongError: ErrorKind(422, "too_long", "A text has more tokens than the model takes"),
    OovError: ErrorKind(422, "oov", "A word is outside the vocabulary"),
    PresetError: ErrorKind(422, "invalid_preset", "The preset or its parameters are unusable"),
    LatticeError: ErrorKind(422, "invalid_lattice", "The lattice is unusable"),
    TooManyArcsError: ErrorKind(413, "too_many_arcs", "A lattice has more arcs than the limit"),
    OverBudgetError: ErrorKind(413, "too_many_tokens", "A list is larger than a forward pass"),
    NotHttpError: ErrorKind(400, "malformed_http", "The bytes are no HTTP"),
    ModelNotFoundError: ErrorKind(404, "model_not_found", "No such model is loaded"),
    ModelLoadingError: ErrorKind(409, "model_loading", "The model is being loaded", 1),
    MemoryBudgetError: ErrorKind(409, "memory_budget", "The model does not fit into memory"),
    LastModelError: ErrorKind(409, "last_model", "The only model cannot be unloaded"),
    ArtifactError: ErrorKind(422, "invalid_model", "The model or its weights are refused"),
    ClientDisconnect: ErrorKind(499, "canceled", "The client went away"),
    NotReadyError: ErrorKind(503, "not_ready", "The engine is not running", retry_after_s=1),
    DrainingError: ErrorKind(503, "draining", "The server is shutting down", retry_after_s=1),
    OverloadedError: ErrorKind(429, "overloaded", "More waits than can be done in time", 1),
    DeadlineExceededError: ErrorKind(504, "deadline_exceeded", "The deadline has passed", 1),
    Exception: INTERNAL,
}

HTTP_ERRORS: Mapping[int, ErrorKind] = {
    400: MALFORMED,
    401: ErrorKind(401, "unauthenticated", "The request has no API key that is known"),
    403: ErrorKind(403, "forbidden", "The API key may not do this"),
    404: ErrorKind(404, "not_found", "No such path"),
    405: ErrorKind(405, "method_not_allowed", "The path has no such method"),
    408: ErrorKind(408, "request_timeout", "The request was not sent in time"),
    413: ErrorKind(413, "body_too_large", "The body is larger than the limit"),
    415: ErrorKind(415, "unsupported_media_type", "The route does not read this type"),
    431: ErrorKind(431, "headers_too_large", "The headers are larger than the limit"),
    429: ErrorKind(429, "quota", "The API key has used up its share for now"),
    503: ErrorKind(503, "too_many_connections", "Every connection is in use", 1),
}


def install_error_handlers(app: FastAPI) -> None:
    """Send every exception of the app through `handle`."""
    for kind in (SecondpassError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


async def handle(request: Request, error: Exception) -> Response:
    """The one answer to every exception; a stack trace goes to the log and nowhere else."""
    request_id: str = request.state.request_id
    if kind_of(error).status == INTERNAL.status:
        logger.error("request %s failed", request_id, exc_info=error)
    return problem_response(error, instance=request.url.path, request_id=request_id)


def problem_response(error: Exception, *, instance: str, request_id: str) -> Response:
    """What the client is told.

    Args:
        instance: path of the request; "" if its head was not read.
    """
    kind, described = kind_of(error), describe(error)
    body = RequestProblem(
        **described.model_dump(exclude={"errors"}),
        errors=described.errors,
        instance=instance,
        request_id=request_id,
    )
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    headers["X-Request-ID"] = request_id
    if kind.retry_after_s is not None:
        headers["Retry-After"] = str(getattr(error, "retry_after_s", kind.retry_after_s))
    return Response(body.model_dump_json(), kind.status, headers, PROBLEM_JSON)


def describe(error: Exception) -> Problem:
    """Problem details of an exception."""
    kind = kind_of(error)
    return Problem(
        type=f"urn:secondpass:error:{kind.code}",
        title=kind.title,
        status=kind.status,
        detail=_detail(error, kind),
        code=kind.code,
        errors=_items(error),
    )


def kind_of(error: Exception) -> ErrorKind:
    """The row of the nearest base class that has one."""
    if isinstance(error, HTTPException):
        return HTTP_ERRORS.get(error.status_code, INTERNAL)
    if isinstance(error, RequestValidationError):
        types = {fault["type"] for fault in error.errors()}
        if "json_invalid" in types:
            return MALFORMED
        return NON_FINITE if "finite_number" in types else INVALID
    return next(ERRORS[base] for base in type(error).__mro__ if base in ERRORS)


def relocated(error: InputError, within: str) -> InputError:
    """The same error with its pointer relative to the object that holds `within`."""
    return type(error)(str(error), pointer=within + error.pointer)


def _detail(error: Exception, kind: ErrorKind) -> str:
    if kind is INTERNAL:
        return "The log has the cause under this request_id; sending the request again may help"
    if isinstance(error, HTTPException):
        return str(error.detail)
    if isinstance(error, RequestValidationError):
        first = _items(error)[0]
        return f"{first.pointer or 'body'}: {first.message}"
    return str(error)


def _items(error: Exception) -> list[ErrorItem]:
    if isinstance(error, InputError):
        return [ErrorItem(pointer=error.pointer, message=str(error))]
    if isinstance(error, RequestValidationError):
        return [_item(fault) for fault in error.errors()[:MAX_LISTED_ERRORS]]
    return []


def _item(fault: Mapping[str, Any]) -> ErrorItem:
    steps = fault["loc"]
    if fault["type"] == "json_invalid":
        return ErrorItem(pointer="", message=f"invalid JSON at character {steps[-1]}")
    message = MESSAGES.get(fault["type"], str(fault["msg"]))
    if fault["type"] in UNKNOWN_FIELD and steps[-3:-2] + steps[-1:] == LM_SCORE:
        message = "is another name of graph_score; give one of them"
    return ErrorItem(pointer=_pointer(steps[1:]), message=message)


def _pointer(steps: Sequence[str | int]) -> str:
    """RFC 6901 pointer of a path; what UTF-8 cannot write becomes a question mark."""
    text = "".join("/" + escape(str(step)) for step in steps)
    return text.encode("utf-8", "replace").decode()
