"""Bodies are bounded together, from their first byte until their requests are answered."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import Message

from service.errors import BodyTooLargeError, OverloadedError
from service.metrics import Metrics
from service.request_bodies import FREE_BYTES, BodyLimits, HeldBodies, RequestBody
from tests.service.engine_fakes import sample
from tests.service.serving import running

pytestmark = pytest.mark.anyio
SIZE = 2 * FREE_BYTES
PATHS = ("/v1/rescore", "/v1/score", "/v1/rescore/lattice")


def body(held: HeldBodies, *parts: int, declared: int | None = None) -> RequestBody:
    """A body whose parts have these sizes; after them its client hangs up."""
    messages = iter([{"type": "http.request", "body": bytes(size)} for size in parts])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    headers = {} if declared is None else {"content-length": str(declared)}
    return RequestBody(Headers(headers), receive, 3 * SIZE, held)


async def test_what_is_declared_is_counted_before_it_comes_and_until_it_is_let_go() -> None:
    metrics = Metrics()
    held = HeldBodies(2 * SIZE, metrics)
    first, second = body(held, SIZE, declared=SIZE), body(held, SIZE, declared=SIZE)
    for one in (first, second, first):
        await one.receive()
    assert held.num_bytes == 2 * SIZE
    third = body(held, declared=FREE_BYTES + 1)
    with pytest.raises(OverloadedError) as caught:
        await third.receive()
    assert caught.value.retry_after_s == 1
    assert sample(metrics, "rescore_shed_total", model="other", reason="bodies_full") == 1.0
    third.let_go()
    assert held.num_bytes == 2 * SIZE
    first.let_go()
    second.let_go()
    assert held.num_bytes == 0


async def test_of_a_body_that_declares_nothing_what_has_come_is_counted() -> None:
    held = HeldBodies(SIZE, Metrics())
    dripping = body(held, FREE_BYTES, 1, FREE_BYTES)
    counted = []
    for _ in range(2):
        await dripping.receive()
        counted.append(held.num_bytes)
    assert counted == [0, FREE_BYTES + 1]
    with pytest.raises(OverloadedError):
        await dripping.receive()
    dripping.let_go()
    assert held.num_bytes == 0


async def test_a_body_too_large_is_not_counted() -> None:
    held = HeldBodies(9 * SIZE, Metrics())
    with pytest.raises(BodyTooLargeError):
        await body(held, declared=3 * SIZE + 1).receive()
    assert held.num_bytes == 0


def test_the_largest_body_of_any_route_fits_some_times() -> None:
    assert BodyLimits(5).held_bytes == 20
    assert BodyLimits(5, {"/a": 7, "/b": 6}).held_bytes == 28


async def send_bytes(client: httpx.AsyncClient, path: str, size_bytes: int) -> httpx.Response:
    """The answer to a body that is no JSON."""
    headers = {"Content-Type": "application/json"}
    return await client.post(path, content=bytes(size_bytes), headers=headers)


async def upload(app: FastAPI, path: str, gone: asyncio.Event) -> int:
    """The status of a request that declares a large body and hangs up instead of sending it."""
    statuses: list[int] = []

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json"), (b"content-length", b"%d" % SIZE)]
    await app(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize("path", PATHS)
async def test_uploads_beyond_the_bound_are_refused_until_others_are_over(path: str) -> None:
    async with running(max_body_bytes=SIZE, max_lattice_body_bytes=SIZE) as (client, app):
        for end in ("hangs up", "is canceled"):
            gone = asyncio.Event()
            uploads = [asyncio.create_task(upload(app, path, gone)) for _ in range(4)]
            await asyncio.sleep(0)
            refused = await send_bytes(client, path, SIZE)
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert refused.headers["Retry-After"] == "1"
            assert (await send_bytes(client, path, FREE_BYTES)).status_code == 400
            if end == "hangs up":
                gone.set()
                assert [await one for one in uploads] == [499] * 4
            for one in uploads:
                one.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await one
            assert (await send_bytes(client, path, SIZE)).status_code == 400
        metrics = app.state.core.metrics
        assert sample(metrics, "rescore_shed_total", model="other", reason="bodies_full") == 2.0
