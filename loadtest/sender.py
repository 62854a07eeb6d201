"""Sends what was planned when it was planned, and never waits for an answer to send the next.

One event loop, no task for a request whose connection is open. How late requests were sent is part
of the result: a generator that cannot keep up says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from loadtest.bodies import Ask
from loadtest.connection import Answer, Connection, Connections, clock
from loadtest.samples import HUNG_UP, Manner, Sample, outcome_of, stages_of

SLOW_PIECES = 8
SLOW_S = 0.3  # a slow client takes that long over its body
GONE_AFTER_S = 0.005  # after its body, when the server has begun
GRACE_S = 5.0  # after the last deadline; who is silent then will stay so
_TICK_S = 0.05  # between two looks at the time where nothing is due


@dataclass(frozen=True)
class Arrival:
    """One planned request: when, what, how."""

    at_s: float
    ask: Ask
    manner: Manner = "whole"


class Sender:
    """Sends requests to one server.

    Args:
        connections: to it.
        deadline_ms: of every request.
        on_progress: told the seconds of a step that are over.
    """

    def __init__(
        self,
        connections: Connections,
        deadline_ms: float,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._connections = connections
        self._deadline_ms = deadline_ms
        self._on_progress = on_progress
        self._tasks: set[asyncio.Task[None]] = set()
        self._outstanding = 0
        self._start_s = 0.0

    async def send_open(self, arrivals: Sequence[Arrival]) -> list[Sample]:
        """Send every request when it is due; returns once all are answered or never will be.

        Args:
            arrivals: ascending in time.
        """
        samples = []
        self._start_s = clock()
        for arrival in arrivals:
            await self._wait_until(arrival.at_s)
            sample = Sample(arrival.ask.kind, arrival.manner, arrival.at_s)
            samples.append(sample)
            self._begin(arrival.ask, sample, lambda: None)
        give_up_s = self._now_s() + self._deadline_ms / 1000.0 + GRACE_S
        while self._outstanding and self._now_s() < give_up_s:
            await asyncio.sleep(_TICK_S)
            self._on_progress(self._now_s())
        return samples

    async def send_in_turn(self, asks: Sequence[Ask], requests: int) -> list[Sample]:
        """That many, each once the one before is answered."""
        samples: list[Sample] = []
        self._start_s = clock()
        for place in range(requests):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._ask_once(asks[place % len(asks)], samples),
                    self._deadline_ms / 1000.0 + GRACE_S,
                )
        return samples

    async def send_closed(
        self, asks: Sequence[Ask], *, clients: int, duration_s: float
    ) -> list[Sample]:
        """`clients` at once, each sending its next request when the last one is answered."""
        samples: list[Sample] = []
        places = count()
        self._start_s = clock()
        running = [
            asyncio.ensure_future(self._one_client(asks, places, duration_s, samples))
            for _ in range(clients)
        ]
        limit_s = duration_s + self._deadline_ms / 1000.0 + GRACE_S
        done, hanging = await asyncio.wait(running, timeout=limit_s)
        for client in hanging:
            client.cancel()
        for client in done:
            client.result()
        return samples

    async def _one_client(
        self, asks: Sequence[Ask], places: count[int], duration_s: float, samples: list[Sample]
    ) -> None:
        while (now_s := self._now_s()) < duration_s:
            self._on_progress(now_s)
            await self._ask_once(asks[next(places) % len(asks)], samples)

    async def _ask_once(self, ask: Ask, samples: list[Sample]) -> None:
        sample = Sample(ask.kind, "whole", self._now_s())
        samples.append(sample)
        is_over = asyncio.Event()
        self._begin(ask, sample, is_over.set)
        await is_over.wait()

    async def _wait_until(self, at_s: float) -> None:
        while (left_s := at_s - self._now_s()) > 0:
            self._on_progress(self._now_s())
            await asyncio.sleep(min(left_s, _TICK_S))

    def _begin(self, ask: Ask, sample: Sample, on_over: Callable[[], None]) -> None:
        self._outstanding += 1
        sample.sent_s = self._now_s()
        if (connection := self._connections.take()) is not None:
            self._send(connection, ask, sample, on_over)
            return
        task = asyncio.get_running_loop().create_task(self._connect(ask, sample, on_over))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, ask: Ask, sample: Sample, on_over: Callable[[], None]) -> None:
        try:
            connection = await self._connections.open()
        except OSError:
            self._end(on_over)
            return
        self._send(connection, ask, sample, on_over)

    def _send(
        self, connection: Connection, ask: Ask, sample: Sample, on_over: Callable[[], None]
    ) -> None:
        def on_answer(answer: Answer) -> None:
            sample.outcome = outcome_of(answer.status, answer.body)
            if answer.status:
                sample.done_s = answer.done_s - self._start_s
                sample.stages_ms = stages_of(answer.timing)
                self._connections.give_back(connection)
            self._end(on_over)

        def hang_up() -> None:
            if connection.on_answer is on_answer:
                connection.hang_up()
                sample.outcome = HUNG_UP
                self._end(on_over)

        head = ask.head(self._connections.host, self._deadline_ms)
        later = asyncio.get_running_loop().call_later
        if sample.manner == "whole":
            connection.ask(head + ask.body, on_answer)
        elif sample.manner == "slow":
            connection.ask(head, on_answer)
            step = len(ask.body) // SLOW_PIECES + 1
            for number, start in enumerate(range(0, len(ask.body), step), start=1):
                delay_s = number * SLOW_S / SLOW_PIECES
                later(delay_s, connection.more, ask.body[start : start + step])
        else:
            end = len(ask.body) // (2 if sample.manner == "gone mid-body" else 1)
            connection.ask(head + ask.body[:end], on_answer)
            later(GONE_AFTER_S, hang_up)

    def _end(self, on_over: Callable[[], None]) -> None:
        self._outstanding -= 1
        on_over()

    def _now_s(self) -> float:
        return clock() - self._start_s
