"""What waits for the engine: by model, earliest deadline first. Its caller holds the lock."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.jobs import Served, Ticket, requests_of
from service.metrics import Metrics


def _key(ticket: Ticket[Any]) -> tuple[float, float]:
    return ticket.key


@dataclass(eq=False)
class ModelQueue:
    """The tickets of one model object.

    Attributes:
        model: what they run on.
        tickets: earliest deadline first, then in order of arrival.
        num_tokens: what they cost together.
        num_anytime: of those that can be stopped at any time.
    """

    model: Served
    tickets: list[Ticket[Any]] = field(default_factory=list)
    num_tokens: int = 0
    num_anytime: int = 0

    def before(self, deadline_s: float) -> tuple[int, int]:
        """Those whose deadline is that or earlier: how many, and what they cost.

        The later ones are taken away: most newcomers have few behind them.
        """
        count = bisect_left(self.tickets, (deadline_s, math.inf), key=_key)
        later = sum(ticket.job.cost_tokens for ticket in self.tickets[count:])
        return count, self.num_tokens - later


class JobQueue:
    """All tickets whose work has not begun.

    A model stands here only while something waits for it, so that one which is replaced is freed.

    Attributes:
        num_requests: requests with a ticket in it. num_tokens: what all tickets cost.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.num_requests = 0
        self.num_tokens = 0
        self._metrics = metrics
        self._queues: dict[int, ModelQueue] = {}  # by identity: models need not be hashable

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[ModelQueue]:
        return iter(self._queues.values())

    def oldest_s(self) -> float | None:
        """When the ticket came that has waited longest; None if nothing waits."""
        return min(
            (ticket.queued_s for queue in self for ticket in queue.tickets),
            default=None,
        )

    def of(self, model: Served) -> ModelQueue:
        """What waits for one model."""
        return self._queues.get(id(model.model)) or ModelQueue(model)

    def add(self, tickets: Sequence[Ticket[Any]]) -> None:
        """Put tickets of one request in."""
        for ticket in tickets:
            job = ticket.job
            queue = self._queues.setdefault(id(job.model.model), ModelQueue(job.model))
            insort(queue.tickets, ticket, key=_key)
            queue.num_tokens += job.cost_tokens
            queue.num_anytime += job.is_anytime
            self.num_tokens += job.cost_tokens
            ticket.request.num_queued += 1
            self._metrics.queue_requests.labels(job.model.name).inc()
            self._metrics.queue_tokens.labels(job.model.name).inc(job.cost_tokens)
        self.num_requests += len(requests_of(tickets))

    def remove(self, tickets: Collection[Ticket[Any]]) -> None:
        """Take tickets out; one that is not in it is no matter."""
        for ticket in tickets:
            identity = id(ticket.job.model.model)
            queue = self._queues.get(identity)
            if queue is None:
                continue
            at = bisect_left(queue.tickets, ticket.key, key=_key)
            if at < len(queue.tickets) and queue.tickets[at] is ticket:
                del queue.tickets[at]
                self._count_out(ticket, queue)
                if not queue.tickets:
                    del self._queues[identity]

    def clear(self) -> list[Ticket[Any]]:
        """Take everything out."""
        tickets = [ticket for queue in self for ticket in queue.tickets]
        self.remove(tickets)
        return tickets

    def _count_out(self, ticket: Ticket[Any], queue: ModelQueue) -> None:
        job = ticket.job
        queue.num_tokens -= job.cost_tokens
        queue.num_anytime -= job.is_anytime
        self.num_tokens -= job.cost_tokens
        ticket.request.num_queued -= 1
        self.num_requests -= ticket.request.num_queued == 0
        self._metrics.queue_requests.labels(job.model.name).dec()
        self._metrics.queue_tokens.labels(job.model.name).dec(job.cost_tokens)
