"""A dead service costs a decoder nothing, and is asked again once it is back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine

import httpx
import pytest

from service.client import Ambient, AsyncClient, ClientSettings
from service.client.breaker import CircuitBreaker
from tests.service.client.conftest import Drive
from tests.service.client.driving import (
    LISTS,
    OWN,
    TURNED,
    URL,
    Driven,
    World,
    answered,
    refused,
    texts,
)

AWAY = httpx.ConnectError("refused")
READY = httpx.Response(200)


def test_after_some_failures_in_a_row_nothing_is_sent(drive: Drive) -> None:
    world = World([AWAY])
    client = drive(world, failures_to_open=3, max_attempts=1)
    for _ in range(3):
        assert client.rescore().degraded == ("unavailable",)
    now_s = world.now_s
    for _ in range(10):
        reply = client.rescore()
        assert (texts(reply), reply.degraded) == (OWN, ("circuit_open",))
    assert len(world.requests) == 3
    assert world.now_s == now_s
    assert client.stats.fallbacks == {"unavailable": 3, "circuit_open": 10}


def test_an_answer_between_them_starts_the_count_again(drive: Drive) -> None:
    signs = [answered(), refused(429, "overloaded"), refused(404, "model_not_found")]
    signs.append(refused(504, "deadline_exceeded"))
    for sign in signs:
        world = World([AWAY, sign, AWAY, sign, AWAY, sign, answered()])
        client = drive(world, failures_to_open=2, max_attempts=1)
        for _ in range(6):
            client.rescore()
        assert texts(client.rescore()) == TURNED


def test_a_probe_closes_it_and_no_call_waits_for_that(drive: Drive) -> None:
    world = World([AWAY, answered()], probes=[READY])
    client = drive(world, failures_to_open=1, max_attempts=1, open_s=5)
    client.rescore()
    world.now_s += 4.9
    client.rescore()
    assert len(world.probes) == 1  # too early
    world.now_s += 0.2
    assert client.rescore().degraded == ("circuit_open",)  # which sets off the probe
    client.let_probe_end()
    assert not world.probes
    assert texts(client.rescore()) == TURNED


def test_a_probe_that_fails_leaves_it_open_for_as_long_again(drive: Drive) -> None:
    probes: list[httpx.Response | Exception] = [
        AWAY,
        refused(503, "not_ready"),
        KeyError("?"),
        READY,
    ]
    world = World([AWAY, answered()], probes=list(probes))
    client = drive(world, failures_to_open=1, max_attempts=1, open_s=5)
    client.rescore()
    for left in (3, 2, 1):
        world.now_s += 5
        for _ in range(3):  # one of them probes
            assert client.rescore().degraded == ("circuit_open",)
            client.let_probe_end()
        assert len(world.probes) == left
    world.now_s += 5
    client.rescore()
    client.let_probe_end()
    assert texts(client.rescore()) == TURNED


def test_a_service_that_is_ready_and_does_not_answer_is_given_one_call(drive: Drive) -> None:
    world = World([AWAY], probes=[READY])
    client = drive(world, failures_to_open=3, max_attempts=1, open_s=5)
    for _ in range(3):
        client.rescore()
    world.now_s += 5
    client.rescore()
    client.let_probe_end()
    assert [client.rescore().degraded for _ in range(3)] == [
        ("unavailable",),
        ("circuit_open",),
        ("circuit_open",),
    ]


def test_a_thread_that_cannot_be_had_is_a_probe_that_failed(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    world = World([AWAY, answered()], probes=[READY])
    client = drive(world, failures_to_open=1, max_attempts=1, open_s=5)
    client.rescore()
    world.now_s += 5
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        assert client.rescore().degraded == ("circuit_open",)
    world.now_s += 5
    client.rescore()
    client.let_probe_end()
    assert texts(client.rescore()) == TURNED


def test_nor_is_one_without_an_event_loop_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(main: Coroutine[object, object, None]) -> None:
        main.close()
        raise OSError(24, "Too many open files")

    world = World([AWAY, answered()], probes=[READY])
    with Driven(world, is_async=True, failures_to_open=1, max_attempts=1, open_s=5) as client:
        client.rescore()
        for run in (cannot, asyncio.run):
            monkeypatch.setattr(asyncio, "run", run)
            world.now_s += 5
            assert client.rescore().degraded == ("circuit_open",)
            client.let_probe_end()
        assert texts(client.rescore()) == TURNED


def test_it_closes_again_for_who_has_an_event_loop_to_each_call() -> None:
    world = World([AWAY, answered()], probes=[READY])
    client = AsyncClient(
        URL,
        ClientSettings(failures_to_open=1, max_attempts=1, open_s=5),
        transport=lambda: httpx.MockTransport(world.answer),
        ambient=Ambient(clock=lambda: world.now_s),
    )
    replies = [asyncio.run(client.rescore(LISTS))]
    world.now_s += 5
    replies.append(asyncio.run(client.rescore(LISTS)))
    assert client._probe is not None
    client._probe.join()
    replies.append(asyncio.run(client.rescore(LISTS)))
    assert [one.degraded for one in replies] == [("unavailable",), ("circuit_open",), ()]


def test_one_probe_at_a_time() -> None:
    breaker = CircuitBreaker(failures_to_open=1, open_s=0.0, clock=lambda: 0.0)
    assert not breaker.take_probe()
    breaker.fail()
    assert [breaker.take_probe(), breaker.take_probe()] == [True, False]
    breaker.end_probe(is_ready=False)
    assert breaker.take_probe()
