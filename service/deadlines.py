"""When a request has to be answered. The clock starts at its first byte.

A client that cannot wait says so in the body or in a header that a proxy may set; the smaller one
holds. The body's is refused above the server's maximum, the header's is cut to it: a proxy's
patience is not the client's wish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from quantized_lm.errors import InputError
from service.lost_work import LostWork

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
DEADLINE = "deadline"  # why an answer is degraded
OVERLOADED = "overloaded"


@dataclass(frozen=True)
class Arrival:
    """What a request's time is counted from, and what is counted of its work.

    Attributes:
        received_s: when its first byte came, on the engine's clock.
        timeout_ms: what its header grants; None without one.
        lost: what the engine does for it in vain.
    """

    received_s: float
    timeout_ms: float | None = None
    lost: LostWork = field(default_factory=LostWork, compare=False)


@dataclass(frozen=True)
class Deadlines:
    """The server's rule.

    Attributes:
        default_ms: for requests that say nothing. max_ms: for all.
    """

    default_ms: float
    max_ms: float

    def at_s(self, arrival: Arrival, asked_ms: float | None, pointer: str) -> float:
        """The deadline of a request, on the engine's clock.

        Args:
            asked_ms: what its body says. pointer: to that.

        Raises:
            InputError: the body asks for more than the maximum.
        """
        if asked_ms is not None and asked_ms > self.max_ms:
            raise InputError(
                f"deadline_ms is {asked_ms:g}; need at most {self.max_ms:g}", pointer=pointer
            )
        named_ms = [ms for ms in (asked_ms, arrival.timeout_ms) if ms is not None]
        allowed_ms = min(*named_ms, self.max_ms) if named_ms else self.default_ms
        return arrival.received_s + allowed_ms / 1000.0

    def latest_s(self, arrival: Arrival, *, may_ask: bool) -> float:
        """When a request is late whatever its body says, on the engine's clock.

        Args:
            may_ask: whether its body may say something, which is not known before it is read.
        """
        return self.at_s(arrival, self.max_ms if may_ask else None, "")


def parse_timeout_ms(text: str) -> float:
    """The value of the header.

    Raises:
        InputError: it is not a number above 0.
    """
    try:
        timeout_ms = float(text)
    except ValueError:
        timeout_ms = math.nan
    if not 0.0 < timeout_ms < math.inf:
        raise InputError(f"{TIMEOUT_HEADER} is {text!r}; need a number of milliseconds above 0")
    return timeout_ms
