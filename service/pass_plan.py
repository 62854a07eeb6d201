"""Which work goes into the next forward pass.

A pass is of one model and fits the budget. Its lead is in it whatever else there is: the queued job
with the earliest deadline and, in turn with that, what runs already and was left out of the last
pass. So a large job waits for no room, a model for no other model's work, and a search of many
passes goes on under any load. The rest joins in the order of deadlines, what runs and what is
queued alike; a queued job is overtaken by none of its model with a later deadline. Nothing joins
that would make the pass end after the deadline of something in it.

What shares a pass saves its fixed cost. Where the model wants all of it at once, everything ends
with the pass, which costs the earlier work its head start; and nothing can be put before what is in
it. So nothing joins a pass that is long enough for its fixed cost to count little.

What can be stopped at any time may last for many passes. All that is under way fits the budget
together, so that memory stays bounded; the next one waits for room, and only others wait behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import Any

from service.cost_model import CostModel
from service.costs import Costs
from service.job_queue import JobQueue, ModelQueue
from service.jobs import Served, Started, Ticket

Entry = Ticket[Any] | Started[Any]
# How long a pass may become by joining, whichever is most:
SHORT_S = 0.008  # delays nobody to speak of
LEAD_TIMES = 2.0  # of what its lead takes alone: two alike share one
# Of its fixed cost, which then is a tenth; but no longer than its lead has waited: that counts only
# where the queue is long.
FIXED_TIMES = 10.0


@dataclass
class Pass:
    """A forward pass as it is put together.

    Attributes:
        model: what it is of. cost: how long that takes.
        now_s: when it begins. ends_s: when it is expected to end.
        room_tokens: what is left of the budget.
        must_end_s: the earliest deadline in it.
        joined_until_s: nothing joins that would make it end later than that.
        taken: tickets that begin with it. resumed: work under way that is in it.
    """

    model: Served
    cost: CostModel
    now_s: float
    room_tokens: int
    must_end_s: float = float("inf")
    joined_until_s: float = float("inf")
    num_nodes: int = 0
    taken: list[Ticket[Any]] = field(default_factory=list)
    resumed: list[Started[Any]] = field(default_factory=list)

    @property
    def ends_s(self) -> float:
        """When it is expected to end."""
        return self._end_s(0, 0)

    def fits(self, entry: Entry) -> bool:
        """Whether there is room, and everything in it would still be on time."""
        job = _ticket(entry).job
        return job.cost_tokens <= self.room_tokens and self._end_s(nodes_of(entry), 1) <= min(
            self.must_end_s, self.joined_until_s, job.deadline_s
        )

    def add(self, entry: Entry) -> None:
        """Take it in."""
        if isinstance(entry, Ticket):
            self.taken.append(entry)
        else:
            self.resumed.append(entry)
        job = _ticket(entry).job
        self.room_tokens -= job.cost_tokens
        self.num_nodes += nodes_of(entry)
        self.must_end_s = min(self.must_end_s, job.deadline_s)

    def _end_s(self, nodes: int, jobs: int) -> float:
        jobs += len(self.taken) + len(self.resumed)
        return self.now_s + self.cost.seconds(self.num_nodes + nodes, 1, jobs)


class Planner:
    """Puts passes together.

    Args:
        budget_tokens: what the jobs of one pass may cost.
        costs: how long passes take.
    """

    def __init__(self, budget_tokens: int, costs: Costs) -> None:
        self._budget_tokens = budget_tokens
        self._costs = costs
        self._number = 0
        self._was_led_by_queue = False

    @property
    def number(self) -> int:
        """Of the last pass."""
        return self._number

    def pass_of(
        self, queue: JobQueue, started: Sequence[Started[Any]], now_s: float
    ) -> Pass | None:
        """The next pass; None if there is nothing to do. Changes neither of the two."""
        lead = self._lead(queue, started)
        if lead is None:
            return None
        self._number += 1
        model = _ticket(lead).job.model
        plan = Pass(model, self._costs.of(model.name), now_s, self._budget_tokens)
        plan.add(lead)
        plan.joined_until_s = now_s + _shared_s(plan, lead)
        self._fill(plan, lead, queue.of(model), started)
        return plan

    def _lead(self, queue: JobQueue, started: Sequence[Started[Any]]) -> Entry | None:
        room = self._anytime_room(started)
        heads = [head for waiting in queue if (head := _head(waiting.tickets, room))]
        head = min(heads, key=_key, default=None)
        left_out = [entry for entry in started if entry.last_pass < self._number]
        self._was_led_by_queue = head is not None and not (self._was_led_by_queue and left_out)
        if self._was_led_by_queue:
            return head
        return min(started, key=lambda entry: (entry.last_pass, entry.ticket.key), default=None)

    def _fill(
        self,
        plan: Pass,
        lead: Entry,
        waiting: ModelQueue,
        started: Sequence[Started[Any]],
    ) -> None:
        room = self._anytime_room(started) - sum(
            ticket.job.cost_tokens for ticket in plan.taken if ticket.job.is_anytime
        )
        queued: Sequence[Entry] = waiting.tickets
        running: list[Entry] = sorted(
            (entry for entry in started if entry.ticket.job.model.model is plan.model.model),
            key=_key,
        )
        # is_anytime -> whether none may overtake, or there is none. A queue of hundreds is gone
        # through no further than that: it took a tenth of an overloaded engine's time.
        is_barred = {True: waiting.num_anytime == 0, False: False}
        for entry in merge(queued, running, key=_key):
            if entry is lead or _ticket(entry).future.done():
                continue
            if isinstance(entry, Started):
                if plan.fits(entry):
                    plan.add(entry)
                continue
            is_anytime = entry.job.is_anytime
            if not is_barred[is_anytime] and _has_room(entry, room) and plan.fits(entry):
                plan.add(entry)
                room -= entry.job.cost_tokens if is_anytime else 0
                continue
            is_barred[is_anytime] = True
            if all(is_barred.values()):
                break
        for entry in running:  # what the loop did not come to
            if entry is not lead and entry not in plan.resumed and plan.fits(entry):
                plan.add(entry)

    def _anytime_room(self, started: Sequence[Started[Any]]) -> int:
        return self._budget_tokens - sum(
            entry.ticket.job.cost_tokens for entry in started if entry.ticket.job.is_anytime
        )


def nodes_of(entry: Entry) -> int:
    """Log-probabilities that a pass computes for it, about."""
    if isinstance(entry, Ticket):
        return entry.job.cost_tokens
    return entry.piece.num_nodes


def _shared_s(plan: Pass, lead: Entry) -> float:
    """How long a pass that holds its lead alone may become."""
    alone_s = plan.ends_s - plan.now_s
    waited_s = plan.now_s - lead.queued_s if isinstance(lead, Ticket) else 0.0
    for_throughput_s = min(FIXED_TIMES * plan.cost.seconds(0, 1, 0), waited_s)
    return max(SHORT_S, LEAD_TIMES * alone_s, for_throughput_s)


def _ticket(entry: Entry) -> Ticket[Any]:
    return entry if isinstance(entry, Ticket) else entry.ticket


def _key(entry: Entry) -> tuple[float, float]:
    return _ticket(entry).key


def _head(tickets: Sequence[Ticket[Any]], anytime_room: int) -> Ticket[Any] | None:
    """The first ticket that may begin."""
    is_barred = False
    for ticket in tickets:
        if not ticket.job.is_anytime or (not is_barred and _has_room(ticket, anytime_room)):
            return ticket
        is_barred = True
    return None


def _has_room(ticket: Ticket[Any], anytime_room: int) -> bool:
    return not ticket.job.is_anytime or ticket.job.cost_tokens <= anytime_room


@dataclass
class LateTickets:
    """Tickets that get no pass.

    Attributes:
        gone: nobody waits for them. late: they cannot be on time.
    """

    gone: list[Ticket[Any]] = field(default_factory=list)
    late: list[Ticket[Any]] = field(default_factory=list)


def find_late(queue: JobQueue, costs: Costs, now_s: float, *, is_idle: bool) -> LateTickets:
    """What stands first in the queue and is not worth a pass.

    A prediction alone never leaves the engine idle: where it would, the first ticket is tried, or
    a cost that is thought too high would never be seen to be lower.

    Args:
        is_idle: whether nothing is under way.
    """
    found = LateTickets()
    doubtful: list[Ticket[Any]] = []
    num_left = 0
    for waiting in queue:
        cost = costs.of(waiting.model.name)
        num_left += len(waiting.tickets)
        for ticket in waiting.tickets:
            deadline_s = ticket.job.deadline_s
            if ticket.future.done():
                found.gone.append(ticket)
            elif now_s >= deadline_s:
                found.late.append(ticket)
            elif now_s + cost.seconds(ticket.job.cost_tokens, 1, 1) > deadline_s:
                doubtful.append(ticket)
            elif not ticket.job.is_anytime:  # which may wait for room while others go on
                break
    num_left -= len(found.gone) + len(found.late) + len(doubtful)
    doubtful.sort(key=_key)
    found.late += doubtful[1:] if is_idle and not num_left else doubtful
    return found
