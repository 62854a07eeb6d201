"""No connection is lost to a call that ends early: the next one is answered all the same."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.client import AsyncClient, Client, ClientSettings
from tests.service.client.driving import LISTS
from tests.service.client.test_sockets import HEAD, answers, read_request, says_nothing, serving

pytestmark = pytest.mark.real_clock


def few(count: int) -> ClientSettings:
    """So few connections that one which is lost is missed; every failure leaves the circuit."""
    return ClientSettings(
        max_connections=count,
        max_attempts=1,
        network_allowance_ms=0,
        failures_to_open=1_000_000,
        deadline_ms=2000,
    )


def answers_slowly(connection: socket.socket) -> None:
    while content := read_request(connection):
        time.sleep(0.005)
        connection.sendall(HEAD % len(content) + content)


def deadline_ms(number: int) -> float:
    """Before the answer, with it, after it."""
    return 3 + number * 0.61 % 30


def test_a_caller_may_be_canceled_at_any_step() -> None:
    async def ask(url: str) -> tuple[str, ...]:
        async with AsyncClient(url, few(1)) as client:
            for steps in range(120):
                call = asyncio.create_task(client.rescore(LISTS))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait({call})
            return (await client.rescore(LISTS)).degraded

    with serving(answers) as server:
        assert asyncio.run(ask(server.url)) == ()


def test_deadlines_may_pass_at_any_step_of_asynchronous_calls() -> None:
    async def ask(url: str) -> tuple[str, ...]:
        async with AsyncClient(url, few(2)) as client:
            for first in range(0, 150, 5):
                numbers = range(first, first + 5)
                calls = [client.rescore(LISTS, deadline_ms=deadline_ms(n)) for n in numbers]
                await asyncio.gather(*calls)
            return (await client.rescore(LISTS)).degraded

    with serving(answers_slowly) as server:
        assert asyncio.run(ask(server.url)) == ()


def test_deadlines_may_pass_at_any_step_of_blocking_calls() -> None:
    def call(number: int) -> None:
        client.rescore(LISTS, deadline_ms=deadline_ms(number))

    with (
        serving(answers_slowly) as server,
        Client(server.url, few(2)) as client,
        ThreadPoolExecutor(8) as callers,
    ):
        list(callers.map(call, range(400)))
        assert client.rescore(LISTS).degraded == ()


def test_a_call_that_finds_no_connection_free_is_late() -> None:
    async def ask(url: str) -> list[tuple[str, ...]]:
        async with AsyncClient(url, few(1)) as client:
            calls = [client.rescore(LISTS, deadline_ms=after_ms) for after_ms in (150, 100)]
            return [reply.degraded for reply in await asyncio.gather(*calls)]

    with serving(says_nothing) as server:
        assert asyncio.run(ask(server.url)) == [("deadline",)] * 2
        assert server.connections == 1


def test_nothing_is_left_of_a_canceled_call_once_the_client_is_closed() -> None:
    async def ask(url: str) -> int:
        client = AsyncClient(url, few(1))
        call = asyncio.create_task(client.rescore(LISTS))
        while not server.connections:
            await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.wait({call})
        began_s = time.monotonic()
        await client.aclose()
        assert time.monotonic() - began_s < 0.5  # the server would keep it for longer
        return len(asyncio.all_tasks())

    with serving(says_nothing) as server:
        assert asyncio.run(ask(server.url)) == 1
