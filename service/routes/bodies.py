"""What a request says, read as JSON and by its schema. Faults are told only where they are few."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from quantized_lm.components import escape
from quantized_lm.errors import InputError

# A fault that is told takes a kilobyte, and a request may have one every few bytes.
MAX_FAULTS = 1_000
Value = TypeVar("Value")


def read_json(content: bytes) -> object:
    """A body as Python's reader takes it: in UTF-8, 16 or 32, NaN and infinities included.

    Raises:
        RequestValidationError: it is no JSON; says where.
        HTTPException: it is no text, or nested too deep.
    """
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        place = ("body", error.pos)
        fault = {"type": "json_invalid", "loc": place, "msg": f"invalid JSON: {error.msg}"}
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from None
    raise RequestValidationError([fault])


def validated(
    adapter: TypeAdapter[Value], value: object, place: str, *, strict: bool | None = None
) -> Value:
    """What a value says by its schema.

    Args:
        place: what pointers begin with: "body" or "query".
        strict: as in pydantic; None for what the schema says.

    Raises:
        RequestValidationError: it does not fit the schema.
        InputError: so, in more places than can be told.
    """
    try:
        return adapter.validate_python(value, strict=strict)
    except ValidationError as error:
        require_few(error)
        faults: list[Mapping[str, Any]] = [
            {**fault, "loc": (place, *fault["loc"])}
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
    raise RequestValidationError(faults)


def require_no_query(request: Request) -> None:
    """Pass if there is nothing in the query, which nobody reads beside a body of JSON.

    Raises:
        InputError: there is; the pointer names the parameter.
    """
    if request.scope["query_string"]:
        for name in request.query_params:
            raise InputError(
                f"{name} is in the query; need it in the body, as that is JSON",
                pointer=f"/{escape(name)}",
            )


def require_few(error: ValidationError) -> None:
    """Pass if the faults are so few that they can be told.

    Raises:
        InputError: they are more.
    """
    count = error.error_count()
    if count > MAX_FAULTS:
        raise InputError(
            f"the request does not fit the schema in {count} places; need what /docs shows"
        ) from None
