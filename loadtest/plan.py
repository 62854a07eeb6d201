"""The steps of a run and how long each takes; the loads come from what the first steps find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest import schedule
from loadtest.bodies import Ask
from loadtest.samples import Manner
from loadtest.sender import Arrival

STEADY_SHARE = 0.7  # of capacity
OVERLOAD_SHARE = 2.0
BURST_SHARE = 0.3  # between bursts
BURST_S = 0.25  # one burst is the work of that long
RAMP_SHARE = 2.5  # where the ramp ends
OTHER_SHARE = 0.5  # mixed sizes, difficult clients
PROBES_PER_S = 10.0  # after the overload: enough to see, too few to be a load
MANNER_SHARES: Mapping[Manner, float] = {
    "whole": 0.8,
    "slow": 0.1,
    "gone mid-body": 0.05,
    "gone after body": 0.05,
}


@dataclass(frozen=True)
class Durations:
    """Of every step, in seconds; idle_requests: of each kind, one at a time.

    A p99 is that of the worst moments: simulated, 60 s of `steady_s` tell it to 9 %, 240 s to 3 %.
    """

    idle_requests: int = 300
    capacity_s: float = 4.0
    clients: tuple[int, ...] = (1, 2, 4, 8, 16)
    steady_s: float = 240.0
    overload_s: float = 60.0
    recovery_s: float = 6.0
    burst_s: float = 20.0
    burst_every_s: float = 4.0
    ramp_s: float = 30.0
    mixed_s: float = 30.0
    difficult_s: float = 30.0


FULL = Durations()
QUICK = Durations(12, 1.2, (1, 4, 16), 5.0, 5.0, 3.0, 3.0, 1.0, 4.0, 3.0, 3.0)


@dataclass(frozen=True)
class Planner:
    """Makes the arrivals of every open step.

    Attributes:
        asks: of the standard kind. mix: (asks, share of requests) of each kind in the mix.
        seed: the same seed and rates give the same arrivals.
    """

    durations: Durations
    asks: Sequence[Ask]
    mix: Sequence[tuple[Sequence[Ask], float]]
    seed: int = 0

    def steady(self, capacity: float) -> list[Arrival]:
        """Below capacity."""
        duration_s = self.durations.steady_s
        return self._standard(schedule.steady(STEADY_SHARE * capacity, duration_s, self.seed + 1))

    def overload(self, capacity: float) -> list[Arrival]:
        """Far above capacity, and at its end probes at an even pace."""
        duration_s = self.durations.overload_s
        load = schedule.steady(OVERLOAD_SHARE * capacity, duration_s, self.seed + 2)
        probes = duration_s + schedule.even(PROBES_PER_S, self.durations.recovery_s)
        return self._standard(np.concatenate([load, probes]))

    def bursts(self, capacity: float) -> list[Arrival]:
        """Below capacity, but for bursts."""
        times = schedule.bursts(
            BURST_SHARE * capacity,
            self.durations.burst_s,
            size=max(round(BURST_S * capacity), 4),
            every_s=self.durations.burst_every_s,
            seed=self.seed + 3,
        )
        return self._standard(times)

    def ramp(self, capacity: float) -> list[Arrival]:
        """From nothing to far above capacity."""
        times = schedule.ramp(0.0, RAMP_SHARE * capacity, self.durations.ramp_s, self.seed + 4)
        return self._standard(times)

    def mixed(self, service_s: Sequence[float]) -> list[Arrival]:
        """Kinds as the mix says.

        Args:
            service_s: how long one request of each kind of the mix takes on an idle server.
        """
        shares = [share for _, share in self.mix]
        rate = OTHER_SHARE / float(np.average(service_s, weights=shares))
        times = schedule.steady(rate, self.durations.mixed_s, self.seed + 5)
        kinds = schedule.drawn(len(times), shares, self.seed + 6)
        return [
            Arrival(at_s, self.mix[kind][0][place % len(self.mix[kind][0])])
            for place, (at_s, kind) in enumerate(zip(times.tolist(), kinds.tolist(), strict=True))
        ]

    def difficult(self, capacity: float) -> list[Arrival]:
        """Slow clients and such as hang up among the others."""
        times = schedule.steady(OTHER_SHARE * capacity, self.durations.difficult_s, self.seed + 7)
        manners = list(MANNER_SHARES)
        chosen = schedule.drawn(len(times), list(MANNER_SHARES.values()), self.seed + 8)
        return [
            Arrival(arrival.at_s, arrival.ask, manners[choice])
            for arrival, choice in zip(self._standard(times), chosen.tolist(), strict=True)
        ]

    def _standard(self, times: schedule.Times) -> list[Arrival]:
        return [
            Arrival(at_s, self.asks[place % len(self.asks)])
            for place, at_s in enumerate(times.tolist())
        ]
