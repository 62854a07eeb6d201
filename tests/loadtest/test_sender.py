"""What is sent is what was planned, and what is measured is what a client would have waited."""

from __future__ import annotations

import asyncio
import socket

import pytest

from loadtest import sender as sender_module
from loadtest.bodies import Ask
from loadtest.connection import Connections
from loadtest.samples import HUNG_UP, UNANSWERED, Manner
from loadtest.sender import Arrival, Sender
from tests.loadtest.scripted import reply, scripted

pytestmark = [pytest.mark.anyio, pytest.mark.real_clock]
ASK = Ask("10-best", "/v1/rescore", "application/json", b'{"utterances":[]}' * 20)
DEADLINE_MS = 500.0


@pytest.fixture
def anyio_backend() -> str:
    """asyncio alone."""
    return "asyncio"


def arrivals(*times_s: float, manner: Manner = "whole") -> list[Arrival]:
    """Of one request."""
    return [Arrival(at_s, ASK, manner) for at_s in times_s]


async def test_a_server_that_stalls_is_seen_in_every_request_of_that_time() -> None:
    stalled = asyncio.Event()

    async def answer(_number: int, _body: bytes) -> bytes:
        await stalled.wait()
        return reply()

    async with scripted(answer) as (server, connections):
        asyncio.get_running_loop().call_later(0.4, stalled.set)
        samples = await Sender(connections, DEADLINE_MS).send_open(
            arrivals(*(0.02 * number for number in range(20)))
        )
    assert server.num_connections == 20
    assert [sample.outcome for sample in samples] == ["200"] * 20
    for sample in samples:
        assert sample.latency_s is not None
        assert sample.latency_s >= 0.4 - sample.planned_s - 0.05
        assert sample.sent_s - sample.planned_s < 0.3  # sent although nothing was answered


async def test_connections_are_used_again() -> None:
    async def answer(_number: int, _body: bytes) -> bytes:
        return reply(timing="queue;dur=0.5, forward;dur=3.25")

    async with scripted(answer) as (server, connections):
        sender = Sender(connections, DEADLINE_MS)
        samples = await sender.send_in_turn([ASK], 5)
    assert server.num_connections == 1
    assert server.bodies == [ASK.body] * 5
    assert samples[0].stages_ms == {"queue": 0.5, "forward": 3.25}


async def test_outcomes_are_status_and_reason() -> None:
    answers = [
        reply(body=b'{"results":[{"degraded":["deadline"]}]}'),
        reply(429, b'{"code":"overloaded"}'),
        reply(500, b"?"),
        b"",
        b"no HTTP\r\n\r\n",
    ]

    async def answer(number: int, _body: bytes) -> bytes:
        return answers[number]

    async with scripted(answer) as (_, connections):
        samples = await Sender(connections, DEADLINE_MS).send_in_turn([ASK], len(answers))
    outcomes = [sample.outcome for sample in samples]
    assert outcomes == ["200 deadline", "429 overloaded", "500", UNANSWERED, UNANSWERED]
    assert samples[3].latency_s is None


async def test_nobody_who_listens_is_unanswered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    samples = await Sender(Connections("127.0.0.1", port), DEADLINE_MS).send_open(arrivals(0.0))
    assert [sample.outcome for sample in samples] == [UNANSWERED]


async def test_an_answer_that_never_comes_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "GRACE_S", 0.1)
    never = asyncio.Event()

    async def answer(_number: int, _body: bytes) -> bytes:
        await never.wait()
        return b""

    async with scripted(answer) as (_, connections):
        sender = Sender(connections, 10.0)
        opened = await sender.send_open(arrivals(0.0, 0.01))
        closed = await sender.send_closed([ASK], clients=2, duration_s=0.05)
        in_turn = await sender.send_in_turn([ASK], 2)
        assert [one.outcome for one in (*opened, *closed, *in_turn)] == [UNANSWERED] * 6
        never.set()


async def test_slow_clients_send_all_and_leaving_ones_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender_module, "SLOW_S", 0.1)
    taken = asyncio.Event()

    async def answer(_number: int, _body: bytes) -> bytes:
        await asyncio.sleep(0.05)  # longer than those stay who leave
        taken.set()
        return reply()

    async with scripted(answer) as (server, connections):
        sender = Sender(connections, DEADLINE_MS)
        (slow,) = await sender.send_open(arrivals(0.0, manner="slow"))
        (gone,) = await sender.send_open(arrivals(0.0, manner="gone after body"))
        await asyncio.wait_for(taken.wait(), 30)
        (mid,) = await sender.send_open(arrivals(0.0, manner="gone mid-body"))
        assert slow.outcome == "200"
        assert slow.latency_s is not None
        assert slow.latency_s >= 0.1
        assert (gone.outcome, mid.outcome) == (HUNG_UP, HUNG_UP)
        assert gone.is_client_fault
        assert server.bodies == [ASK.body] * 2


async def test_closed_clients_wait_for_their_answers() -> None:
    running, most = 0, 0

    async def answer(_number: int, _body: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return reply()

    async with scripted(answer) as (_, connections):
        told: list[float] = []
        sender = Sender(connections, DEADLINE_MS, told.append)
        samples = await sender.send_closed([ASK], clients=3, duration_s=0.1)
    assert most == 3
    assert len(samples) > 3
    assert {sample.outcome for sample in samples} == {"200"}
    assert told == sorted(told)
