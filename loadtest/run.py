"""A whole run against one server, step after step, and what was seen of both sides meanwhile."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.bodies import Ask
from loadtest.connection import Connections
from loadtest.measures import Observed, Step, in_time
from loadtest.plan import Planner
from loadtest.samples import Sample
from loadtest.sender import Arrival, Sender
from loadtest.server import Address, MemoryWatch, ServerError, busy_s, scrape

IDLE = "idle"
CAPACITY = "capacity"
STEADY = "70 %"
OVERLOAD = "200 %"
RECOVERY = "recovery"
BURSTS = "bursts"
RAMP = "ramp"
MIXED = "mixed"
DIFFICULT = "difficult"
_WARM_S = 1.0
Begin = Callable[[str, float], Callable[[float], None]]


@dataclass(frozen=True)
class Run:
    """What a run found.

    Attributes:
        steps: in order; idle and capacity have several.
        capacity_per_s: requests of the standard kind, answered well in the best capacity step.
        rss_before_bytes: before the first open step. rss_peak_bytes: of all.
    """

    steps: Sequence[Step]
    capacity_per_s: float
    rss_before_bytes: int
    rss_after_bytes: int
    rss_peak_bytes: int

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)


class Runner:
    """Runs every step.

    Args:
        address: of the server.
        planner: what to send.
        deadline_ms: of every request.
        begin: (name, seconds) of a step -> what is told how many of them are over.
    """

    def __init__(
        self, address: Address, planner: Planner, deadline_ms: float, begin: Begin
    ) -> None:
        self._address = address
        self._planner = planner
        self._deadline_ms = deadline_ms
        self._begin = begin
        self._connections = Connections(address.host, address.port)
        self._memory = MemoryWatch(address.pid)

    async def run(self) -> Run:
        """All steps.

        Raises:
            ServerError: the server went away, or answers nothing well.
        """
        gc.collect()
        gc.freeze()  # a collection of what is loaded would be mistaken for a slow server
        with self._memory:
            try:
                return await self._steps()
            finally:
                self._connections.close()
                gc.unfreeze()

    async def _steps(self) -> Run:
        durations, planner = self._planner.durations, self._planner
        await self._closed("warm-up", planner.asks, clients=2, duration_s=_WARM_S)
        idle = [await self._idle(asks) for asks in self._kinds().values()]
        capacity_steps = [
            await self._closed(
                f"{CAPACITY}, {clients} at once",
                planner.asks,
                clients=clients,
                duration_s=durations.capacity_s,
            )
            for clients in durations.clients
        ]
        capacity = max(len(in_time(step)) / step.duration_s for step in capacity_steps)
        if capacity == 0.0:
            raise ServerError("no request was answered as asked; look at the server's log")
        before = self._memory.now_bytes()
        steady = await self._open(STEADY, planner.steady(capacity), durations.steady_s)
        overload = await self._overload(planner.overload(capacity))
        service_s = [_median_s(idle, asks[0].kind) for asks, _ in planner.mix]
        others = [
            await self._open(BURSTS, planner.bursts(capacity), durations.burst_s),
            await self._open(RAMP, planner.ramp(capacity), durations.ramp_s),
            await self._open(MIXED, planner.mixed(service_s), durations.mixed_s),
            await self._open(DIFFICULT, planner.difficult(capacity), durations.difficult_s),
        ]
        after = self._memory.now_bytes()
        return Run(
            steps=[*idle, *capacity_steps, steady, *overload, *others],
            capacity_per_s=capacity,
            rss_before_bytes=before,
            rss_after_bytes=after,
            rss_peak_bytes=self._memory.peak_bytes,
        )

    def _kinds(self) -> Mapping[str, Sequence[Ask]]:
        listed = (self._planner.asks, *(asks for asks, _ in self._planner.mix))
        return {asks[0].kind: asks for asks in listed}

    async def _idle(self, asks: Sequence[Ask]) -> Step:
        """One request at a time, a fixed number of them."""

        async def send(sender: Sender) -> list[Sample]:
            return await sender.send_in_turn(asks, self._planner.durations.idle_requests)

        step = await self._observed(f"{IDLE}, {asks[0].kind}", 0.0, send)
        return replace(step, is_open=False, duration_s=step.observed.wall_s)

    async def _closed(
        self, name: str, asks: Sequence[Ask], *, clients: int, duration_s: float
    ) -> Step:
        async def send(sender: Sender) -> list[Sample]:
            return await sender.send_closed(asks, clients=clients, duration_s=duration_s)

        return replace(await self._observed(name, duration_s, send), is_open=False)

    async def _open(self, name: str, arrivals: Sequence[Arrival], duration_s: float) -> Step:
        async def send(sender: Sender) -> list[Sample]:
            return await sender.send_open(arrivals)

        return await self._observed(name, duration_s, send)

    async def _overload(self, arrivals: Sequence[Arrival]) -> tuple[Step, Step]:
        """Overload and recovery, which are sent as one: no pause between."""
        durations = self._planner.durations
        both = await self._open(OVERLOAD, arrivals, durations.overload_s)
        end_s = durations.overload_s
        return (
            replace(both, samples=[one for one in both.samples if one.planned_s < end_s]),
            Step(
                RECOVERY,
                is_open=True,
                duration_s=durations.recovery_s,
                deadline_s=both.deadline_s,
                start_s=end_s,
                samples=[one for one in both.samples if one.planned_s >= end_s],
                observed=Observed(rss_bytes=both.observed.rss_bytes),
            ),
        )

    async def _observed(
        self, name: str, duration_s: float, send: Callable[[Sender], Awaitable[list[Sample]]]
    ) -> Step:
        sender = Sender(self._connections, self._deadline_ms, self._begin(name, duration_s))
        before, busy_before_s = scrape(self._address), busy_s()
        cpu_s, began_s = time.process_time(), time.perf_counter()
        samples = await send(sender)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - began_s
        after, taken_s = scrape(self._address), busy_s() - busy_before_s
        risen = {key: value - before.get(key, 0.0) for key, value in after.items()}
        halves = self._memory.halves_bytes(began_s, time.perf_counter())
        observed = Observed(risen, self._memory.now_bytes(), halves, cpu_s, taken_s, wall_s)
        return Step(
            name,
            is_open=True,
            duration_s=duration_s,
            deadline_s=self._deadline_ms / 1000.0,
            samples=samples,
            observed=observed,
        )


def _median_s(idle: Sequence[Step], kind: str) -> float:
    """How long a request of that kind takes on an idle server.

    Raises:
        ServerError: none was answered.
    """
    found = [
        one.latency_s
        for step in idle
        for one in step.samples
        if one.kind == kind and one.is_good and one.latency_s is not None
    ]
    if not found:
        raise ServerError(f"no {kind} request was answered as asked; look at the server's log")
    return float(np.median(found))
