"""What the OpenAPI document says is so, for requests made from it, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.serving import running

EXAMPLES = 8  # of every operation, right and wrong ones each
DEADLINE_PASSED = 504


def no_server_error_but_a_deadline(context: Any, response: Any, case: Case[Any]) -> bool | None:
    """A request may ask for a deadline that nothing can be read by."""
    if response.status_code == DEADLINE_PASSED:
        return None
    return not_a_server_error(context, response, case)


CHECKS = [
    no_server_error_but_a_deadline,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def document() -> Iterator[Any]:
    """The document of an app that runs."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running()) as started:
        yield schemathesis.openapi.from_asgi("/openapi.json", started[1])


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_every_answer_is_one_the_document_knows(document: Any, mode: GenerationMode) -> None:
    operations = [
        found.ok() for found in document.get_all_operations() if has_input(found.ok(), mode)
    ]
    assert {"/v1/rescore", "/v1/rescore/lattice", "/v1/score"} <= {one.path for one in operations}
    for operation in operations:
        cases: st.SearchStrategy[Case[Any]] = operation.as_strategy(generation_mode=mode)

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def check(case: Case[Any]) -> None:
            case.call_and_validate(checks=CHECKS)

        check()


def has_input(operation: Any, mode: GenerationMode) -> bool:
    """Whether a request can be wrong, or need not be: any string is a model's name."""
    return mode is GenerationMode.POSITIVE or bool(list(operation.body))
