"""The engine: one thread that runs every model, pass by pass. Knows neither text nor HTTP.

Results are handed out as they come. Between two forward passes work that nobody waits for is
dropped, work that is late or would be is stopped, and the next pass is put together
(`pass_plan.py`). Work that was accepted is answered exactly once (`jobs.py`), also if a pass fails,
the thread dies or is stopped.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantized_lm.waves import Running, forward
from service.admission import Admission, EngineLoad, QueueLimits, count_refused
from service.costs import Costs
from service.errors import DeadlineExceededError, DrainingError, NotReadyError
from service.job_queue import JobQueue
from service.jobs import Completed, Job, QueuedRequest, Started, Ticket, answered
from service.lost_work import LostWork
from service.metrics import Metrics
from service.pass_plan import Pass, Planner, find_late
from service.prefix_caches import PrefixCaches

Result = TypeVar("Result")
logger = logging.getLogger(__name__)
DEADLINE = "deadline"  # what work that is late is told
GRACE_S = 0.003  # for an answer that is already on its way from the engine


class Scheduler:
    """Runs jobs on a thread of its own, or, while that is not started, whenever `step` is called.

    Args:
        limits: of the queue and of a pass.
        caches: trees of earlier work; None for none.
        metrics: where queue and forward passes are measured.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        limits: QueueLimits,
        metrics: Metrics,
        caches: PrefixCaches | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._caches = caches or PrefixCaches(0, metrics)
        self.budget_tokens = limits.budget_tokens
        self._metrics = metrics
        self._clock = clock
        self._costs = Costs(metrics)
        self._admission = Admission(self._costs, limits, metrics)
        self._planner = Planner(limits.budget_tokens, self._costs)
        self._queue = JobQueue(metrics)
        self._numbers = itertools.count()
        self._started: list[Started[Any]] = []  # only the engine changes it
        self._in_hand: list[Ticket[Any]] = []  # neither queued nor started
        self._load = EngineLoad()
        self._changed = threading.Condition()  # guards the queue and what follows
        self._refusal: type[DrainingError | NotReadyError] | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        metrics.predicted_wait.set_function(self.predicted_wait_s)
        metrics.queue_age.set_function(self.queue_age_s)
        metrics.pass_overdue.set_function(self.pass_overdue_s)

    @property
    def is_alive(self) -> bool:
        """Whether the engine thread runs and takes work."""
        return self._thread.is_alive() and self._refusal is None

    @property
    def has_died(self) -> bool:
        """Whether the engine thread ended although nobody stopped it."""
        return self._refusal is NotReadyError

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued or under way, so that nobody is refused; as of some moment."""
        return self._load.is_idle and not self._queue

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def stop(self, limit_s: float | None = None) -> None:
        """Take no more work, finish what is queued, and wait for the thread to end.

        Args:
            limit_s: after that many seconds, whoever still waits is told that the server is going
                away; a pass under way goes on. None waits for all.
        """
        with self._changed:
            self._refusal = self._refusal or DrainingError
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(limit_s)
        self._fail_all(DrainingError("the server was stopped before this was done; send it again"))

    def predicted_wait_s(self) -> float:
        """How long a request would wait behind all that is queued."""
        with self._changed:
            return self._admission.wait_s(self._queue, self._load, self._clock())

    def queue_age_s(self) -> float:
        """How long the job has waited that has waited longest."""
        with self._changed:
            oldest_s = self._queue.oldest_s()
        return 0.0 if oldest_s is None else self._clock() - oldest_s

    def pass_overdue_s(self) -> float:
        """How long ago the pass under way was expected to end; 0 without one."""
        with self._changed:
            ends_s = self._load.pass_ends_s
        return max(self._clock() - ends_s, 0.0) if ends_s else 0.0

    def require_hope(self, deadline_s: float, names: Sequence[str]) -> None:
        """Pass unless a request would be refused whatever it asks for.

        Args:
            names: of the models it may ask for, as far as that is known.

        Raises:
            OverloadedError: too much waits.
        """
        with self._changed:
            now_s = self._clock()
            self._admission.require_hope(deadline_s, names, self._queue, self._load, now_s)

    def submit(self, jobs: Sequence[Job[Result]]) -> list[Future[Completed[Result] | None]]:
        """Queue the jobs of one request, which have one deadline; one future per job.

        A future's result is None if the job was given up because of its deadline.

        Raises:
            DrainingError: `stop` was called; none is queued.
            NotReadyError: the engine thread has died.
            OverloadedError, DeadlineExceededError: as `Admission.require_room`.
            ValueError: one is larger than the budget.
        """
        return [ticket.future for ticket in self._submitted(jobs)]

    async def scored(
        self,
        jobs: Sequence[Job[Result]],
        lost: LostWork | None = None,
        *,
        falls_back: bool = False,
    ) -> list[Completed[Result] | None]:
        """Queue the jobs of one request, and wait for all of them until their deadline.

        None stands for a job that was not done by then; what the engine is at does not matter.

        Args:
            lost: told what was done, however this ends.
            falls_back: whether the request is answered though it is refused for overload.

        Raises:
            DrainingError, NotReadyError, OverloadedError: as `submit`.
            Exception: whatever one of them failed with.
        """
        if not jobs:
            return []
        try:
            tickets = self._submitted(jobs, falls_back=falls_back)
        except DeadlineExceededError:
            return [None] * len(jobs)
        try:
            await answered(tickets, jobs[0].deadline_s - self._clock() + GRACE_S)
            futures = [ticket.future for ticket in tickets]
            results = [future.result() if future.done() else None for future in futures]
            finished_s = [one.finished_s for one in results if one is not None]
            if len(finished_s) == len(jobs):
                self._admission.note_lag(self._clock() - max(finished_s))
            return results
        finally:
            self._leave(tickets)
            self._count_lost(tickets, lost or LostWork())

    def step(self) -> bool:
        """One forward pass and what belongs to it; False if there was nothing to do."""
        now_s = self._clock()
        self._settle(now_s)
        with self._changed:
            plan, late = self._next_pass(now_s)
        for ticket in late:
            ticket.give_up()
        if plan is None:
            self._in_hand = []
            return bool(late)
        begun = [entry for ticket in plan.taken if (entry := self._begun(ticket, now_s))]
        self._started += begun
        self._in_hand = []
        entries = [entry for entry in (*plan.resumed, *begun) if not entry.piece.is_over]
        # Answers come in this order. A search goes on after the pass anyway.
        entries.sort(key=lambda entry: (entry.ticket.job.is_anytime, entry.ticket.key))
        if entries:
            num_nodes = sum(entry.piece.num_nodes for entry in entries)
            self._measure(plan, entries, num_nodes)
            if self._forward(plan, entries):
                plan.cost.observe(num_nodes, len(entries), self._clock() - now_s)
        self._settle(self._clock())
        self._set_load()
        return True

    def _submitted(
        self, jobs: Sequence[Job[Result]], *, falls_back: bool = False
    ) -> list[Ticket[Result]]:
        if (largest := max(job.cost_tokens for job in jobs)) > self.budget_tokens:
            raise ValueError(
                f"a job of {largest} tokens was let through to a budget of "
                f"{self.budget_tokens}; this is a bug"
            )
        now_s = self._clock()
        request = QueuedRequest()
        with self._changed:
            if self._refusal is not None:
                if not self.has_died:
                    count_refused(self._metrics, [job.model.name for job in jobs], "draining")
                raise self._refusal("the engine takes no more work; send it to another server")
            self._admission.require_room(
                jobs, self._queue, self._load, now_s, falls_back=falls_back
            )
            tickets = [Ticket(job, next(self._numbers), now_s, request) for job in jobs]
            self._queue.add(tickets)
            self._changed.notify()
        return tickets

    def _leave(self, tickets: Sequence[Ticket[Any]]) -> None:
        """Nobody waits for these any more."""
        left = [ticket for ticket in tickets if ticket.future.cancel()]
        if left:
            with self._changed:
                self._queue.remove(left)

    def _count_lost(self, tickets: Sequence[Ticket[Any]], lost: LostWork) -> None:
        for ticket in tickets:
            name = ticket.job.model.name
            if ticket.has_result:
                lost.unanswered[name] += ticket.num_nodes
            elif ticket.num_nodes:
                lost.tree_nodes += ticket.num_nodes
                self._metrics.tokens.labels(name, "lost").inc(ticket.num_nodes)

    def _work(self) -> None:
        try:
            while self._has_work():
                self.step()
        except BaseException:
            logger.critical("the engine thread died", exc_info=True)
        finally:
            with self._changed:
                self._refusal = self._refusal or NotReadyError
            self._fail_all(NotReadyError("the engine thread died; need a restart"))

    def _has_work(self) -> bool:
        """Wait for work; False once there is none and will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._started or self._refusal)
            return bool(self._queue or self._started)

    def _next_pass(self, now_s: float) -> tuple[Pass | None, list[Ticket[Any]]]:
        """The next pass, and the tickets that will be in none."""
        found = find_late(self._queue, self._costs, now_s, is_idle=not self._started)
        self._in_hand = found.late
        self._queue.remove((*found.gone, *found.late))
        plan = self._planner.pass_of(self._queue, self._started, now_s)
        if plan is None:
            self._load = EngineLoad()
        else:
            self._in_hand = [*found.late, *plan.taken]
            self._queue.remove(plan.taken)
            self._load = EngineLoad(
                is_idle=False, pass_ends_s=plan.ends_s, waves_s=self._load.waves_s
            )
        return plan, found.late

    def _begun(self, ticket: Ticket[Any], now_s: float) -> Started[Any] | None:
        """The work of a ticket under way; the only place where a model's state is made."""
        with self._failing_alone(ticket):
            loaded = ticket.job.model
            piece = Running(ticket.job.work, loaded.model, cache=self._caches.of(loaded))
            return Started(ticket, piece, now_s, self._planner.number)
        return None

    def _measure(self, plan: Pass, entries: Sequence[Started[Any]], num_nodes: int) -> None:
        name = plan.model.name
        self._metrics.batch_sequences.labels(name).observe(len(entries))
        self._metrics.batch_tokens.labels(name).observe(num_nodes)
        for entry in entries:
            entry.ticket.num_nodes += entry.piece.num_nodes

    def _forward(self, plan: Pass, entries: Sequence[Started[Any]]) -> bool:
        """One pass of these, and whether it went well. If not, who has no answer is run alone."""
        num_answered = 0
        try:
            answers = forward([entry.piece for entry in entries], plan.model.model)
            for entry, (_, log_prob) in zip(entries, answers, strict=True):
                num_answered += 1
                self._learn(entry, log_prob)
        except Exception as error:
            name = plan.model.name
            logger.exception("a pass of %d pieces of work failed on %s", len(entries), name)
            if len(entries) == 1:
                entries[0].ticket.fail(error)
                return False
        else:
            return True
        for entry in entries[num_answered:]:
            self._run_alone(entry)
        return False

    def _learn(self, entry: Started[Any], log_prob: NDArray[np.float32]) -> None:
        """Take an answer; what is over is handed out, though others of its pass are not."""
        entry.last_pass = self._planner.number
        with self._failing_alone(entry.ticket):
            entry.piece.learn(log_prob)
            if entry.piece.is_over:
                self._goes_on(entry, self._clock())

    def _run_alone(self, entry: Started[Any]) -> None:
        """From its beginning to its end: who knows what a failed pass has left in its tree."""
        job = entry.ticket.job
        with self._failing_alone(entry.ticket):
            entry.piece = Running(job.work, job.model.model)
            while self._goes_on(entry, self._clock()):
                entry.ticket.num_nodes += entry.piece.num_nodes
                ((_, log_prob),) = forward([entry.piece], job.model.model)
                entry.piece.learn(log_prob)

    def _settle(self, now_s: float) -> None:
        """Stop what is or will be late, hand out what is over, forget what nobody waits for."""
        self._started = [entry for entry in self._started if self._goes_on(entry, now_s)]

    def _goes_on(self, entry: Started[Any], now_s: float) -> bool:
        ticket, piece = entry.ticket, entry.piece
        if ticket.future.done():
            return False
        with self._failing_alone(ticket):
            if not piece.is_over and self._would_be_late(entry, now_s):
                piece.stop(DEADLINE)
                if not piece.is_over:
                    ticket.give_up()
                    return False
            if not piece.is_over:
                return True
            ticket.complete(Completed(piece.result(), entry.started_s, now_s))
        return False

    def _would_be_late(self, entry: Started[Any], now_s: float) -> bool:
        """Whether its next pass would end too late, of work that has something to show by now."""
        job = entry.ticket.job
        cost = self._costs.of(job.model.name)
        next_s = cost.seconds(entry.piece.num_nodes, 1, 1) if job.is_anytime else 0.0
        return now_s + next_s >= job.deadline_s

    def _set_load(self) -> None:
        """Say what is under way to who would queue."""
        pieces: dict[str, list[int]] = {}
        for entry in self._started:
            nodes = pieces.setdefault(entry.ticket.job.model.name, [])
            nodes.append(entry.piece.num_nodes)
        waves_s = sum(
            self._costs.of(name).seconds(sum(nodes), 1, len(nodes))
            for name, nodes in pieces.items()
        )
        with self._changed:
            self._load = EngineLoad(is_idle=not self._started, waves_s=waves_s)

    def _fail_all(self, error: Exception) -> None:
        """Answer whoever still waits."""
        with self._changed:
            waiting = self._queue.clear()
        for ticket in (*waiting, *self._in_hand, *(entry.ticket for entry in self._started)):
            ticket.fail(error)

    @contextmanager
    def _failing_alone(self, ticket: Ticket[Any]) -> Iterator[None]:
        """Pass an error to the waiter and nobody else."""
        try:
            yield
        except Exception as error:
            logger.exception("a piece of work failed on %s", ticket.job.model.name)
            ticket.fail(error)
