"""Request ids, and requests that end without an answer."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.metrics import Metrics
from service.middleware import Envelope
from service.request_bodies import BodyLimits
from tests.fakes import TableModel, fake_loaded
from tests.service.serving import request, running

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("given", ["abc", "x" * 128, "a/b:c"])
async def test_a_printable_request_id_is_echoed(given: str) -> None:
    async with running() as (client, _):
        for path in ("/health/live", "/nowhere"):
            response = await client.get(path, headers={"X-Request-ID": given})
            assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "caf\u00e9"])
async def test_any_other_request_id_is_replaced(given: str) -> None:
    async with running() as (client, _):
        headers = {b"X-Request-ID": given.encode("latin-1")}
        response = await client.get("/health/live", headers=headers)
    assert response.headers["X-Request-ID"].startswith("req_")


async def test_the_id_of_a_call_is_echoed_beside_that_of_the_request() -> None:
    async with running() as (client, _):
        named = {"X-Request-ID": "of-a-proxy", "X-Call-ID": "mine"}
        response = await client.get("/health/live", headers=named)
        assert response.headers["X-Request-ID"] == "of-a-proxy"
        assert response.headers["X-Call-ID"] == "mine"
        for given in ({}, {"X-Call-ID": "a b"}):
            assert "X-Call-ID" not in (await client.get("/nowhere", headers=given)).headers


async def test_the_event_loop_answers_while_the_engine_works() -> None:
    model = TableModel()
    model.gate.clear()
    async with running(fake_loaded(model=model)) as (client, _):
        busy = asyncio.create_task(client.post("/v1/rescore", json=request()))
        while not model.entered.is_set():
            await asyncio.sleep(0)
        text = (await client.get("/metrics")).text
        assert 'rescore_inflight_requests{model="tiny"} 1.0' in text
        assert not busy.done()
        model.gate.set()
        assert (await busy).status_code == 200


async def test_requests_that_wait_together_are_scored_together() -> None:
    model = TableModel()
    model.gate.clear()
    async with running(fake_loaded(model=model)) as (client, app):
        calls = [asyncio.create_task(client.post("/v1/rescore", json=request()))]
        while not model.entered.is_set():
            await asyncio.sleep(0)
        calls += [asyncio.create_task(client.post("/v1/rescore", json=request())) for _ in range(2)]
        queue = app.state.core.metrics.queue_requests.labels("tiny")
        while queue._value.get() < 2:
            await asyncio.sleep(0)
        model.gate.set()
        replies = [response.json() for response in await asyncio.gather(*calls)]
    assert model.batch_sizes == [1, 2]
    assert all(reply["results"] == replies[0]["results"] for reply in replies)


async def test_shutdown_while_busy_answers_what_is_in_flight() -> None:
    model = TableModel()
    model.gate.clear()
    async with running(fake_loaded(model=model)) as (client, _):
        calls = [asyncio.create_task(client.post("/v1/rescore", json=request())) for _ in range(3)]
        while not model.entered.is_set():
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, model.gate.set)
    responses = await asyncio.gather(*calls)
    assert {response.status_code for response in responses} <= {200, 503}
    assert responses[0].status_code == 200


async def test_a_request_that_is_canceled_is_counted_and_leaves_nothing_behind() -> None:
    model = TableModel()
    model.gate.clear()
    async with running(fake_loaded(model=model)) as (client, app):
        busy = asyncio.create_task(client.post("/v1/rescore", json=request()))
        while not model.entered.is_set():
            await asyncio.sleep(0)
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy
        value = app.state.core.metrics.registry.get_sample_value
        assert value("rescore_inflight_requests", {"model": "tiny"}) == 0.0
        model.gate.set()


async def test_other_protocols_pass_through() -> None:
    seen: list[str] = []

    async def inner(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        seen.append(message["type"])

    envelope = Envelope(inner, metrics=Metrics(), bodies=BodyLimits(1))
    await envelope({"type": "lifespan"}, receive, send)
    assert seen == ["lifespan"]
