"""The short way of what is posted, whatever is wrong with it."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.routes import DIRECT_ROUTERS
from service.routes.direct import DirectRoutes
from tests.service.engine_fakes import sample
from tests.service.serving import request, running

pytestmark = pytest.mark.anyio

BODIES = {"/v1/rescore": request(), "/v1/score": {"texts": ["the cat sat", "a cat"]}}
JSON = {"Content-Type": "application/json"}
CHANGING = ("id", "timing")
FOREVER_S = 10.0


def without_changing(reply: dict[str, object]) -> dict[str, object]:
    """A reply without what differs from one to the next."""
    return {name: value for name, value in reply.items() if name not in CHANGING}


@pytest.mark.parametrize("path", BODIES)
async def test_both_readers_lead_to_the_same_answer(path: str) -> None:
    text = json.dumps(BODIES[path])
    async with running() as (client, app):
        short = await client.post(path, content=text, headers=JSON)
        # pydantic does not read UTF-16, and Python does.
        sent = client.post(path, content=text.encode("utf-16"), headers=JSON)
        long = await asyncio.wait_for(sent, FOREVER_S)  # nothing more of the body comes
        assert short.status_code == long.status_code == 200
        assert without_changing(short.json()) == without_changing(long.json())
        assert short.headers.keys() == long.headers.keys()
        metrics, labels = app.state.core.metrics, {"model": "tiny", "outcome": "ok"}
        assert sample(metrics, "rescore_requests_total", route=path, **labels) == 2.0


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_wrong_is_told_with_pointers(path: str) -> None:
    async with running() as (client, _):
        sent = client.post(path, json={**BODIES[path], "bogus": 1})
        wrong = await asyncio.wait_for(sent, FOREVER_S)
        assert wrong.status_code == 422
        assert wrong.json()["errors"][0]["pointer"] == "/bogus"
        torn = await client.post(path, content=b"{", headers=JSON)
        assert (torn.status_code, torn.json()["code"]) == (400, "malformed_json")
        text = {"Content-Type": "text/plain"}
        other = await client.post(path, content=json.dumps(BODIES[path]), headers=text)
        assert (other.status_code, other.json()["code"]) == (415, "unsupported_media_type")
        method = await client.get(path)
        assert (method.status_code, method.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("path", BODIES)
async def test_a_query_is_refused_and_not_ignored(path: str) -> None:
    async with running() as (client, _):
        refused = await client.post(f"{path}?a/b=10&lm_scale=1", json=BODIES[path])
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_field")
        assert [one["pointer"] for one in refused.json()["errors"]] == ["/a~1b"]
        assert (await client.post(f"{path}?", json=BODIES[path])).status_code == 200


async def test_under_a_root_path_the_way_is_as_short() -> None:
    taken: list[str] = []

    async def framework(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        taken.append(scope["path"])

    async with running() as (_, app):
        middleware = DirectRoutes(framework, routers=DIRECT_ROUTERS)
        for path in ("/under/v1/score", "/v1/score", "/under/v1/scores", "/under/v1/score/"):
            scope: Scope = {
                "type": "http",
                "method": "POST",
                "path": path,
                "root_path": "/under" if path.startswith("/under") else "",
                "query_string": b"",
                "headers": [(b"content-type", b"application/json")],
                "app": app,
                "state": {"received_s": app.state.core.engine._clock(), "request_id": "r"},
            }
            sent = await answers(middleware, scope, [b'{"texts": ["a', b' cat"]}'])
            assert bool(sent) == path.endswith("/v1/score")
            assert not sent or scope["route"].path == "/v1/score"
    assert taken == ["/under/v1/scores", "/under/v1/score/"]


async def answers(app: DirectRoutes, scope: Scope, parts: list[bytes]) -> list[Message]:
    """What an app sends to a client that hangs up after its body."""
    waiting = [
        {"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent
