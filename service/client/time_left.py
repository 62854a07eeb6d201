"""What is left of a call's time, for the phases of a request. Knows no request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

_PHASES = ("connect", "pool", "read", "write")


class TimeLeft(Mapping[str, float]):
    """Timeouts of httpcore, which asks as each phase begins, for phases that end at one time.

    To ask when it is over raises TimeoutError.

    Args:
        ends_s: when.
        connect_timeout_s: for one address, within that.
        clock: seconds.
    """

    def __init__(self, ends_s: float, connect_timeout_s: float, clock: Callable[[], float]) -> None:
        self._ends_s = ends_s
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock

    def __getitem__(self, phase: str) -> float:
        left_s = self._ends_s - self._clock()
        if left_s <= 0:  # so nothing is sent for a caller who has gone
            raise TimeoutError("no time is left")
        return min(left_s, self._connect_timeout_s) if phase == "connect" else left_s

    def __iter__(self) -> Iterator[str]:
        return iter(_PHASES)

    def __len__(self) -> int:
        return len(_PHASES)
