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
from service.job_queue import JobQueue
from service.jobs import Job
from service.metrics import OTHER_MODEL, SEVERAL_MODELS, Metrics

CAUTION = 1.35  # of the predicted wait: who is just in time when its turn comes shares no pass
LONGEST_RETRY_S = 60
LAG_SHARE = 0.05  # of the newest result in the mean


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
        pass_ends_s: when the pass under way is expected to end; 0 without one.
        waves_s: how long one more pass of all that is under way is expected to take.
    """

    is_idle: bool = True
    pass_ends_s: float = 0.0
    waves_s: float = 0.0


@dataclass(frozen=True)
class _Ask:
    """What a request asks of the engine, as far as it is known: models, when, nodes, seconds.

    `falls_back` says that it is answered all the same, so that refusing it counts as no refusal.
    """

    names: Sequence[str]
    deadline_s: float
    num_tokens: int = 0
    service_s: float = 0.0
    falls_back: bool = False


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
        self._lag_s = 0.0

    def require_room(
        self,
        jobs: Sequence[Job[Any]],
        queue: JobQueue,
        load: EngineLoad,
        now_s: float,
        *,
        falls_back: bool = False,
    ) -> None:
        """Pass if a request may queue; one that comes to an idle engine always may.

        Args:
            jobs: all of the request, with one deadline.
            queue: what waits. load: what is under way.
            now_s: the time on the clock of the deadlines.
            falls_back: whether it is answered though it is refused; then nothing is counted.

        Raises:
            OverloadedError: too much waits.
            DeadlineExceededError: it would be late if it were alone.
        """
        deadline_s = jobs[0].deadline_s
        if now_s >= deadline_s:
            raise DeadlineExceededError("the deadline had passed before the LM was asked")
        if load.is_idle and not queue:
            return
        ask = _Ask(
            [job.model.name for job in jobs],
            deadline_s,
            sum(job.cost_tokens for job in jobs),
            self._service_s(jobs),
            falls_back,
        )
        self._require_space(ask, queue, load, now_s)
        if ask.service_s + self._lag_s > deadline_s - now_s:
            raise DeadlineExceededError(
                f"the LM needs about {ask.service_s:.3g} s for it; "
                f"{deadline_s - now_s:.3g} s were left"
            )
        self._require_time(ask, queue, load, now_s)

    def require_hope(
        self,
        deadline_s: float,
        names: Sequence[str],
        queue: JobQueue,
        load: EngineLoad,
        now_s: float,
    ) -> None:
        """Pass unless a request would be refused however little it asks for.

        Args:
            names: of the models it may ask for, as far as that is known.

        Raises:
            OverloadedError: too much waits.
        """
        is_late = now_s + self._lag_s >= deadline_s  # whatever waits
        if not is_late and (not load.is_idle or queue):
            ask = _Ask(names, deadline_s)
            self._require_space(ask, queue, load, now_s)
            self._require_time(ask, queue, load, now_s)

    def note_lag(self, seconds: float) -> None:
        """Learn how long a result lay before the event loop took it up."""
        self._lag_s += LAG_SHARE * (seconds - self._lag_s)

    def wait_s(
        self, queue: JobQueue, load: EngineLoad, now_s: float, deadline_s: float = math.inf
    ) -> float:
        """How long a request with that deadline would wait, if it came now."""
        seconds, num_passes = 0.0, 0
        for waiting in queue:
            num_jobs, num_tokens = waiting.before(deadline_s)
            passes = math.ceil(num_tokens / self._limits.budget_tokens)
            cost = self._costs.of(waiting.model.name)
            seconds += cost.seconds(num_tokens, passes, num_jobs)
            num_passes += passes
        return max(load.pass_ends_s - now_s, 0.0) + seconds + (num_passes + 1) * load.waves_s

    def _require_time(self, ask: _Ask, queue: JobQueue, load: EngineLoad, now_s: float) -> None:
        left_s = ask.deadline_s - now_s
        in_hand_s = left_s - ask.service_s - self._lag_s
        drain_s = self.wait_s(queue, load, now_s)
        if CAUTION * drain_s <= in_hand_s:
            return
        wait_s = self.wait_s(queue, load, now_s, ask.deadline_s)
        if CAUTION * wait_s > in_hand_s:
            takes_s = CAUTION * wait_s + left_s - in_hand_s
            found = f"the answer may take {takes_s:.3g} s; {left_s:.3g} s are left"
            raise self._refused(ask, "predicted_late", found, drain_s)

    def _require_space(self, ask: _Ask, queue: JobQueue, load: EngineLoad, now_s: float) -> None:
        num_tokens = queue.num_tokens + ask.num_tokens
        limits = self._limits
        if queue.num_requests >= limits.max_requests:
            found = f"{queue.num_requests} requests wait; at most {limits.max_requests} may"
        elif queue and num_tokens > limits.max_tokens:
            found = f"{num_tokens} tree nodes would wait; at most {limits.max_tokens} may"
        else:
            return
        raise self._refused(ask, "queue_full", found, self.wait_s(queue, load, now_s))

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

    def _refused(self, ask: _Ask, reason: str, found: str, drain_s: float) -> OverloadedError:
        if not ask.falls_back:
            count_refused(self._metrics, ask.names, reason)
        retry_after_s = min(max(math.ceil(drain_s), 1), LONGEST_RETRY_S)
        return OverloadedError(
            f"{found}; send it again in {retry_after_s} s, or to another server",
            retry_after_s=retry_after_s,
        )


def count_refused(metrics: Metrics, names: Sequence[str], reason: str) -> None:
    """Count a request that was refused, by the models that it needs; none if that is not known."""
    distinct = set(names)
    label = OTHER_MODEL if not distinct else SEVERAL_MODELS
    metrics.shed.labels(distinct.pop() if len(distinct) == 1 else label, reason).inc()
