"""The OpenAPI document: error bodies are problem details, and it says so."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.api_keys import required_scope
from service.errors import PROBLEM_JSON
from service.schemas import RequestProblem

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": RequestProblem, "description": "The request is refused; `code` says why."},
    "5XX": {"model": RequestProblem, "description": "The server failed or is going away."},
}

RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
ENGINE_PROBLEMS: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    "429": {
        "model": RequestProblem,
        "description": "`overloaded`: more waits than can be done in time; `quota`: the API key "
        "has used up its share. Send it again after the time given, or to another server.",
        "headers": RETRY_AFTER,
    },
    "504": {
        "model": RequestProblem,
        "description": "`deadline_exceeded`: there is no result at the request's deadline.",
        "headers": RETRY_AFTER,
    },
}


_KEY = "api_key"
_KEY_SCHEME = {"type": "http", "scheme": "bearer", "description": "`secondpass api-key new`"}


class ProblemApi(FastAPI):
    """FastAPI whose OpenAPI document gives errors their own media type, and says who needs a key.

    Attributes:
        is_open: whether scoring needs none.
    """

    is_open = True

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["securitySchemes"] = {_KEY: _KEY_SCHEME}
            for path, operations in document["paths"].items():
                needed = required_scope(path)
                for operation in operations.values():
                    _retype_problems(operation["responses"])
                    if needed == "admin" or (needed == "score" and not self.is_open):
                        operation["security"] = [{_KEY: []}]
        return super().openapi()


def _retype_problems(responses: dict[str, Any]) -> None:
    for status in ENGINE_PROBLEMS:
        if status in responses:
            content = responses[status]["content"]
            content[PROBLEM_JSON] = content.pop("application/json")
