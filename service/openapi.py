"""The OpenAPI document: error bodies are problem details, and it says so."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

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


class ProblemApi(FastAPI):
    """FastAPI whose OpenAPI document gives errors their own media type."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            for operations in super().openapi()["paths"].values():
                for operation in operations.values():
                    _retype_problems(operation["responses"])
        return super().openapi()


def _retype_problems(responses: dict[str, Any]) -> None:
    for status in ENGINE_PROBLEMS:
        if status in responses:
            content = responses[status]["content"]
            content[PROBLEM_JSON] = content.pop("application/json")
