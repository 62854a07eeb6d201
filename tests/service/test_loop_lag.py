"""A loop that is behind is seen, and a request's deadline counts from before it was read."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from starlette.types import Message, Receive, Scope, Send

import service.app
from service.deadlines import Arrival
from service.loop_lag import EVERY_S, LoopLag
from service.metrics import Metrics
from service.middleware import Envelope, Observers
from service.request_bodies import BodyLimits
from tests.fakes import TableModel, fake_loaded
from tests.service.serving import request, running


class Ticks:
    """A clock that stands at the given times, one after the other."""

    def __init__(self, *times_s: float) -> None:
        self._times_s = iter(times_s)

    def __call__(self) -> float:
        try:
            return next(self._times_s)
        except StopIteration:
            raise asyncio.CancelledError from None


@pytest.mark.anyio
async def test_a_delay_is_seen_at_once_and_fades() -> None:
    lag = LoopLag(Ticks(0.0, EVERY_S + 0.5, 1.0, 1.0 + EVERY_S, 2.0, 1.9 + EVERY_S))
    seen: list[float] = []
    watching = asyncio.create_task(lag.watch())
    with contextlib.suppress(asyncio.CancelledError):
        while not watching.done():
            await asyncio.sleep(EVERY_S / 4)
            if not seen or seen[-1] != lag.seconds:
                seen.append(lag.seconds)
    assert seen == [0.0, *(pytest.approx(0.5 * 0.98**times) for times in range(3))]


@pytest.mark.anyio
async def test_the_loop_that_is_blocked_is_behind() -> None:
    lag = LoopLag()
    watching = asyncio.create_task(lag.watch())
    await asyncio.sleep(2 * EVERY_S)
    time.sleep(0.1)
    await asyncio.sleep(2 * EVERY_S)
    watching.cancel()
    assert lag.seconds > 0.03


def test_a_stall_that_is_over_counts_only_while_there_is_work() -> None:
    lag = LoopLag(lambda: 10.0)
    lag.seconds = 0.25
    for due_s, behind_s in ((9.9, 0.1), (10.01, 0.0)):
        lag._due_s = due_s
        lag.is_idle = lambda: False
        assert lag.of_request_s() == 0.25
        lag.is_idle = lambda: True
        assert lag.of_request_s() == pytest.approx(behind_s)


@pytest.mark.anyio
async def test_after_a_stall_a_request_to_an_idle_engine_is_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lag, model = LoopLag(), TableModel()
    lag.seconds = 1e6  # and fades
    monkeypatch.setattr(service.app, "LoopLag", lambda: lag)
    async with running(fake_loaded(model=model)) as (client, app):
        idle = (await client.post("/v1/rescore", json=request())).json()
        while not app.state.core.engine.is_idle:  # which it is a moment after its answer
            await asyncio.sleep(0)
        model.gate.clear()
        model.entered.clear()
        waiting = asyncio.create_task(client.post("/v1/score", json={"texts": ["a"]}))
        await asyncio.to_thread(model.entered.wait, 10.0)
        busy = (await client.post("/v1/rescore", json=request())).json()
        model.gate.set()
        await waiting
    assert idle["results"][0]["degraded"] == []
    assert busy["results"][0]["degraded"] == ["deadline"]


@pytest.mark.anyio
async def test_a_request_came_before_it_was_read_and_is_answered_before_it_is_sent() -> None:
    lag = LoopLag()
    lag.seconds = 0.25
    arrivals: list[Arrival] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        arrivals.append(Arrival(scope["state"]["received_s"]))

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError(message)

    envelope = Envelope(
        app,
        metrics=Metrics(),
        bodies=BodyLimits(1),
        observers=Observers(lag=lag),
        clock=lambda: 10.0,
    )
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await envelope(scope, receive, send)
    assert arrivals == [Arrival(9.5)]
