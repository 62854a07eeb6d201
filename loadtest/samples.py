"""What one request came to. The sender writes these, everything else reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Manner = Literal["whole", "slow", "gone mid-body", "gone after body"]
MANNERS: tuple[Manner, ...] = ("whole", "slow", "gone mid-body", "gone after body")
UNANSWERED = "unanswered"
HUNG_UP = "hung up"
OK = "200"
_DEGRADED = re.compile(rb'"degraded":\["([a-z_]+)')
_CODE = re.compile(rb'"code":"([a-z_]+)')
_STAGE = re.compile(r"([a-z]+);dur=([0-9.]+)")


@dataclass(slots=True)
class Sample:
    """One request.

    Attributes:
        kind: what was sent. manner: how.
        planned_s: when it was to arrive, from the start of its step.
        sent_s: when it was handed to the system, likewise; where no connection was idle, one is
            opened after that, which counts as the server's time.
        done_s: when the last byte of the answer was there; None without an answer.
        outcome: status, and after it the code of a problem or why it is degraded.
        stages_ms: of the reply's Server-Timing.
    """

    kind: str
    manner: Manner
    planned_s: float
    sent_s: float = 0.0
    done_s: float | None = None
    outcome: str = UNANSWERED
    stages_ms: dict[str, float] = field(default_factory=dict)

    @property
    def is_client_fault(self) -> bool:
        """Whether it was given up on purpose."""
        return self.outcome == HUNG_UP

    @property
    def is_good(self) -> bool:
        """Whether it was answered as it was asked: 200 and not degraded."""
        return self.outcome == OK

    @property
    def latency_s(self) -> float | None:
        """From the planned arrival to the answer."""
        return None if self.done_s is None else self.done_s - self.planned_s

    @property
    def answered_after_s(self) -> float | None:
        """From the first byte to the answer, which is what a deadline bounds."""
        return None if self.done_s is None else self.done_s - self.sent_s


def outcome_of(status: int, body: bytes) -> str:
    """Status and reason in one string, found without reading the JSON."""
    if status == 0:
        return UNANSWERED
    found = (_DEGRADED if status == 200 else _CODE).search(body)
    return f"{status} {found[1].decode()}" if found else str(status)


def stages_of(timing: str) -> dict[str, float]:
    """Milliseconds by stage, of a Server-Timing header."""
    return {name: float(duration) for name, duration in _STAGE.findall(timing)}
