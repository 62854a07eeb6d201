"""A piece of work for the engine, and its place in the queue. Knows neither order nor threads.

Every ticket is answered exactly once: with a result, with an error, or by its waiter, who leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

from quantized_lm.models.base import LanguageModel
from quantized_lm.waves import Running, Work

Result = TypeVar("Result")


class Served(Protocol):
    """A model that work is run on."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        ...

    @property
    def model(self) -> LanguageModel:
        """What computes."""
        ...


@dataclass(frozen=True)
class Job(Generic[Result]):
    """One piece of work.

    Attributes:
        model: the one that it was prepared for and runs on, whatever is loaded meanwhile.
        work: what is done.
        cost_tokens: its share of the budget while it runs, 0 to all of it.
        deadline_s: when nobody needs the result any more, on the scheduler's clock.
        is_anytime: whether the work can be stopped between two passes and still has a result.
    """

    model: Served
    work: Work[Result]
    cost_tokens: int
    deadline_s: float
    is_anytime: bool = False


@dataclass(frozen=True)
class Completed(Generic[Result]):
    """A result, when it was taken in and when it was over, in seconds of the scheduler's clock."""

    result: Result
    started_s: float
    finished_s: float


@dataclass(eq=False)
class QueuedRequest:
    """What came together.

    Attributes:
        num_queued: how many of its jobs have not begun.
    """

    num_queued: int = 0


@dataclass(eq=False)
class Ticket(Generic[Result]):
    """A job and whoever waits for it.

    Attributes:
        job: what is done.
        number: how many jobs came before; decides between equal deadlines.
        queued_s: when it came.
        request: what it came with.
        future: the waiter's.
        num_nodes: run through the network for it so far; only the engine changes it.
        key: its place in the order of work.
    """

    job: Job[Result]
    number: int
    queued_s: float
    request: QueuedRequest
    future: Future[Completed[Result] | None] = field(default_factory=Future)
    num_nodes: int = 0
    key: tuple[float, float] = field(init=False)
    _answering: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.key = (self.job.deadline_s, self.number)

    @property
    def has_result(self) -> bool:
        """Whether it is answered, and with a result."""
        future = self.future
        if not future.done() or future.cancelled() or future.exception():
            return False
        return future.result() is not None

    def complete(self, completed: Completed[Result]) -> None:
        """Answer with a result, unless it is answered or nobody waits."""
        self._answer(lambda: self.future.set_result(completed))

    def give_up(self) -> None:
        """Answer that there is no result in time, unless it is answered or nobody waits."""
        self._answer(lambda: self.future.set_result(None))

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless it is answered or nobody waits."""
        self._answer(lambda: self.future.set_exception(error))

    def _answer(self, answer: Callable[[], None]) -> None:
        with self._answering:  # the engine and whoever stops it may both want to
            if not self.future.done() and self.future.set_running_or_notify_cancel():
                answer()


@dataclass(eq=False)
class Started(Generic[Result]):
    """A job under way.

    Attributes:
        ticket: its own. piece: how far it has come. started_s: when it was taken in.
        last_pass: number of the last forward pass that it was in.
    """

    ticket: Ticket[Result]
    piece: Running[Result]
    started_s: float
    last_pass: int


def requests_of(tickets: Sequence[Ticket[Any]]) -> set[QueuedRequest]:
    """The requests that tickets belong to."""
    return {ticket.request for ticket in tickets}


async def answered(tickets: Sequence[Ticket[Any]], limit_s: float) -> None:
    """Wait until all are answered, one of them by an error, or for so long.

    One wake-up of the event loop for all of them: what `asyncio.wait` of wrapped futures comes to,
    at a fraction of its cost.
    """
    loop = asyncio.get_running_loop()
    is_over = loop.create_future()
    # Not the tickets: a future remembers what it called, and they would never be freed.
    waited_for = [None for _ in tickets]

    def wake() -> None:
        if not is_over.done():
            is_over.set_result(None)

    def take(future: Future[Any]) -> None:
        """Runs where the answer comes from: on the engine's thread, or another."""
        if future.cancelled():  # by whoever waited
            return
        waited_for.pop()  # one at a time, whichever threads
        if future.exception() or not waited_for:
            loop.call_soon_threadsafe(wake)

    timer = loop.call_later(max(limit_s, 0.0), wake)
    try:
        for ticket in tickets:
            ticket.future.add_done_callback(take)
        await is_over
    finally:
        timer.cancel()
