"""Requests leave nothing to the garbage collector, which would stop every thread to find it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
from starlette.requests import Request

from service.routes import exchange
from tests.service.serving import Json, request, running, utterance

_EXIT_STACKS = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="an error that passes the framework's exit stacks becomes a cycle in Python 3.10",
)


@pytest.fixture
def _only_by_hand() -> Iterator[None]:
    """The collector runs when it is told to, and keeps what it finds."""
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.anyio
@pytest.mark.usefixtures("_only_by_hand")
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("rescore", request(), 200),
        ("rescore", request(utterance("a"), utterance("the cat")), 200),
        ("rescore", request(model="nobody"), 404),
        pytest.param("rescore", {"utterances": [{"id": 1}]}, 422, marks=_EXIT_STACKS),
        ("score", {"texts": ["the cat", "a"]}, 200),
    ],
)
async def test_a_request_is_freed_when_it_is_answered(
    path: str, body: Json, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LISTENS_AFTER_S", 0.0)  # also of a model that answers at once
    async with running() as (client, _):
        for _ in range(3):
            assert (await client.post(f"/v1/{path}", json=body)).status_code == status
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [one for one in gc.garbage if isinstance(one, Request)] == []
