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
    for status in PROBLEMS:
        if status in responses:
            content = responses[status]["content"]
            content[PROBLEM_JSON] = content.pop("application/json")
