"""Who may queue: nobody beyond the bounds, and nobody who would be answered too late.

What is refused at once can still be sent elsewhere, and costs the engine nothing. A newcomer is
judged by its own deadline alone, against what is done before it in the order of deadlines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from service.costs import Costs
from service.errors import DeadlineExceededError, OverloadedError
from service.job_queue import JobQueue, ModelQueue
from service.jobs import Job
from service.metrics import SEVERAL_MODELS, Metrics

CAUTION = 1.35  # of the predicted wait: who is just in time when its turn comes shares no pass
LONGEST_RETRY_S = 60


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait, and how much runs at once.

    Attributes:
        budget_tokens: of one forward pass. max_requests, max_tokens: of the queue.
    """

    budget_tokens: int
    max_requests: int
    max_tokens: int


@dataclass(frozen=True)
class EngineLoad:
    """What the engine is at.

    Attributes:
        is_idle: whether nothing is under way.
        pass_ends_s: when the pass under way is expected to end.
        waves_s: how long one more pass of all that is under way is expected to take.
    """

    is_idle: bool = True
    pass_ends_s: float = 0.0
    waves_s: float = 0.0


@dataclass
class _Work:
    """Jobs of one model: how many, and what they cost."""

    num_jobs: int = 0
    num_tokens: int = 0


class Admission:
    """Decides whether a request may queue.

    Args:
        costs: how long passes take.
        limits: of the queue.
        metrics: where refusals are counted.
    """

    def __init__(self, costs: Costs, limits: QueueLimits, metrics: Metrics) -> None:
        self._costs = costs
        self._limits = limits
        self._metrics = metrics

    def require_room(
        self, jobs: Sequence[Job[Any]], queue: JobQueue, load: EngineLoad, now_s: float
    ) -> None:
        """Pass if a request may queue; one that comes to an idle engine always may.

        Args:
            jobs: all of the request, with one deadline.
            queue: what waits. load: what is under way.
            now_s: the time on the clock of the deadlines.

        Raises:
            OverloadedError: too much waits.
            DeadlineExceededError: it would be late if it were alone.
        """
        deadline_s = jobs[0].deadline_s
        if now_s >= deadline_s:
            raise DeadlineExceededError("the deadline had passed before the LM was asked")
        if load.is_idle and not queue:
            return
        drain_s = self.wait_s(queue, load, now_s)
        self._require_space(jobs, queue, drain_s)
        service_s = self._service_s(jobs)
        left_s = deadline_s - now_s
        if CAUTION * drain_s + service_s <= left_s:
            return
        if service_s > left_s:
            raise DeadlineExceededError(
                f"the LM needs about {service_s:.3g} s for it; {left_s:.3g} s were left"
            )
        wait_s = self.wait_s(queue, load, now_s, deadline_s)
        takes_s = CAUTION * wait_s + service_s
        if takes_s > left_s:
            raise self._refused(
                jobs,
                "predicted_late",
                f"the answer may take {takes_s:.3g} s; {left_s:.3g} s are left",
                drain_s,
            )

    def wait_s(
        self, queue: JobQueue, load: EngineLoad, now_s: float, deadline_s: float = math.inf
    ) -> float:
        """How long a request with that deadline would wait, if it came now."""
        seconds, num_passes = 0.0, 0
        for waiting in queue:
            work = _work_before(waiting, deadline_s)
            passes = math.ceil(work.num_tokens / self._limits.budget_tokens)
            cost = self._costs.of(waiting.model.name)
            seconds += cost.seconds(work.num_tokens, passes, work.num_jobs)
            num_passes += passes
        return max(load.pass_ends_s - now_s, 0.0) + seconds + (num_passes + 1) * load.waves_s

    def _require_space(self, jobs: Sequence[Job[Any]], queue: JobQueue, drain_s: float) -> None:
        num_tokens = queue.num_tokens + sum(job.cost_tokens for job in jobs)
        limits = self._limits
        if queue.num_requests >= limits.max_requests:
            found = f"{queue.num_requests} requests wait; at most {limits.max_requests} may"
        elif queue and num_tokens > limits.max_tokens:
            found = f"{num_tokens} tree nodes would wait; at most {limits.max_tokens} may"
        else:
            return
        raise self._refused(jobs, "queue_full", found, drain_s)

    def _service_s(self, jobs: Iterable[Job[Any]]) -> float:
        works: dict[str, _Work] = {}
        for job in jobs:
            work = works.setdefault(job.model.name, _Work())
            work.num_jobs += 1
            work.num_tokens += job.cost_tokens
        budget = self._limits.budget_tokens
        return sum(
            self._costs.of(name).seconds(
                work.num_tokens, math.ceil(work.num_tokens / budget), work.num_jobs
            )
            for name, work in works.items()
        )

    def _refused(
        self, jobs: Sequence[Job[Any]], reason: str, found: str, drain_s: float
    ) -> OverloadedError:
        count_refused(self._metrics, jobs, reason)
        retry_after_s = min(max(math.ceil(drain_s), 1), LONGEST_RETRY_S)
        return OverloadedError(
            f"{found}; send it again in {retry_after_s} s, or to another server",
            retry_after_s=retry_after_s,
        )


def count_refused(metrics: Metrics, jobs: Sequence[Job[Any]], reason: str) -> None:
    """Count a request that was refused."""
    names = {job.model.name for job in jobs}
    metrics.shed.labels(names.pop() if len(names) == 1 else SEVERAL_MODELS, reason).inc()


def _work_before(waiting: ModelQueue, deadline_s: float) -> _Work:
    if deadline_s == math.inf:
        return _Work(len(waiting.tickets), waiting.num_tokens)
    before = waiting.before(deadline_s)
    return _Work(len(before), sum(ticket.job.cost_tokens for ticket in before))
