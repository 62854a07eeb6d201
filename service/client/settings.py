"""What a client may be told once, and what it takes from its surroundings."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from quantized_lm.errors import InputError

MIB = 1 << 20


@dataclass(frozen=True)
class ClientSettings:
    """How long to wait, how often to ask, and when to leave a service alone.

    Attributes:
        api_key: sent as a bearer token; None sends none.
        deadline_ms: of a call that names none; retries and pauses included.
        network_allowance_ms: kept back from the deadline that the service is told, for the way of
            the answer. A call with less left is not sent.
        connect_timeout_ms: for a connection to one address, within the deadline.
        max_attempts: of one call.
        backoff_ms: the pause before attempt k + 1 is random in 0 to backoff_ms * 2 ** (k - 1).
        max_backoff_ms: bound of that range.
        failures_to_open: failed calls in a row after which the service is not asked any more.
        open_s: for so long; then one probe of /health/ready, beside the decoder's calls.
        probe_timeout_ms: for the answer to that probe.
        on_invalid: what becomes of a request that the service refuses as wrong (400, 413, 415,
            422): RefusedRequestError, or the decoder's own list like any other failure.
        max_reply_bytes: of one answer; a longer one is not read.
        max_connections: open at a time, and requests under way, whatever makes the connections;
            they are kept for the next call. Who finds all in use waits, within the deadline.
    """

    api_key: str | None = field(default=None, repr=False)
    deadline_ms: float = 2000.0
    network_allowance_ms: float = 20.0
    connect_timeout_ms: float = 1000.0
    max_attempts: int = 3
    backoff_ms: float = 50.0
    max_backoff_ms: float = 1000.0
    failures_to_open: int = 5
    open_s: float = 5.0
    probe_timeout_ms: float = 500.0
    on_invalid: Literal["raise", "first_pass"] = "raise"
    max_reply_bytes: int = 64 * MIB
    max_connections: int = 100

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InputError: a number is below its least value.
        """
        least = {"network_allowance_ms": 0.0, "backoff_ms": 0.0, "max_backoff_ms": 0.0}
        for name, value in vars(self).items():
            if name in ("api_key", "on_invalid"):
                continue
            if name in least:
                is_right, need = value >= 0, "0 or more"
            else:
                is_right, need = value > 0, "more than 0"
            if not is_right:
                raise InputError(f"{name} is {value}; need {need}", pointer=f"/{name}")
        if self.on_invalid not in ("raise", "first_pass"):
            raise InputError(f"on_invalid is {self.on_invalid!r}; need raise or first_pass")


@dataclass(frozen=True)
class Ambient:
    """What a test replaces.

    Attributes:
        clock: seconds, monotonic.
        random: a number in [0, 1).
    """

    clock: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random
