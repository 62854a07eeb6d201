"""One thread that owns the models, and the queue before it. Knows neither text nor HTTP.

What runs together is of one model and fits the budget. Between two forward passes results are
handed out, work that nobody waits for is dropped, work that is late is stopped, and queued work of
the same model is taken in, in order of arrival; unless the oldest is of another model, which then
is next. Every job that was accepted gets a result, an error, or is dropped because its waiter left.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from quantized_lm.models.base import LanguageModel
from quantized_lm.waves import Running, Work, forward
from service.errors import DrainingError
from service.metrics import Metrics

Result = TypeVar("Result")
logger = logging.getLogger(__name__)
DEADLINE = "deadline"  # what work that is late is told


@dataclass(frozen=True)
class Job(Generic[Result]):
    """One piece of work.

    Attributes:
        model: name of the one that it needs.
        work: what is done.
        cost_tokens: its share of the budget while it runs, 0 to all of it.
        deadline_s: when it has to make do with what it knows, on the scheduler's clock.
    """

    model: str
    work: Work[Result]
    cost_tokens: int
    deadline_s: float | None = None


@dataclass(frozen=True)
class Completed(Generic[Result]):
    """A result, when it was taken in and when it was over, in seconds of the scheduler's clock."""

    result: Result
    started_s: float
    finished_s: float


@dataclass(frozen=True)
class _Waiting(Generic[Result]):
    job: Job[Result]
    future: Future[Completed[Result]] = field(default_factory=Future)

    def fail(self, error: Exception) -> None:
        """Answer with an error, if anybody waits."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass
class _Started(Generic[Result]):
    waiting: _Waiting[Result]
    piece: Running[Result]
    started_s: float
    deadline_s: float | None


class Scheduler:
    """Runs jobs wave by wave on its own thread.

    Args:
        model_of: name -> model; its forward passes run on the engine thread.
        budget_tokens: most tokens that the running jobs may cost together.
        metrics: where queue and forward passes are measured.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model_of: Callable[[str], LanguageModel],
        *,
        budget_tokens: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.budget_tokens = budget_tokens
        self._model_of = model_of
        self._metrics = metrics
        self._clock = clock
        self._queue: deque[_Waiting[Any]] = deque()
        self._started: list[_Started[Any]] = []  # of one model; the engine thread's alone
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the engine thread runs and takes work."""
        return self._thread.is_alive() and not self._is_closed

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more work, finish what is queued, and wait for the thread to end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job[Result]]) -> list[Future[Completed[Result]]]:
        """Queue jobs together, so that they can share forward passes; one future per job.

        Raises:
            DrainingError: `stop` was called; none is queued.
            ValueError: one is larger than the budget.
        """
        waiting = [_Waiting(job) for job in jobs]
        for job in jobs:
            if job.cost_tokens > self.budget_tokens:
                raise ValueError(
                    f"a job of {job.cost_tokens} tokens was let through to a budget of "
                    f"{self.budget_tokens}; this is a bug"
                )
        with self._changed:
            if self._is_closed:
                raise DrainingError("the engine takes no more work; send it to another server")
            for job in jobs:
                self._metrics.queue_requests.labels(job.model).inc()
                self._metrics.queue_tokens.labels(job.model).inc(job.cost_tokens)
            self._queue.extend(waiting)
            self._changed.notify()
        return [entry.future for entry in waiting]

    async def scored(self, jobs: Sequence[Job[Result]]) -> list[Completed[Result]]:
        """Queue jobs together and wait for all of them.

        Raises:
            DrainingError: `stop` was called.
            Exception: whatever one of them failed with.
        """
        futures = self.submit(jobs)
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
        finally:
            for future in futures:
                future.cancel()  # nobody waits for what is left of a request that failed or left

    def _work(self) -> None:
        while (taken := self._next_batch()) or self._started:
            if taken:
                self._leave_queue(taken)
                now_s = self._clock()
                for waiting in taken:
                    self._begin(waiting, now_s)
                self._settle(now_s)
            if self._started:
                self._forward()
                self._settle(self._clock())

    def _next_batch(self) -> list[_Waiting[Any]]:
        """What of the queue runs now; waits for work if none does. Empty if closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._started or self._is_closed)
            running = [entry.waiting.job for entry in self._started]
            oldest = self._queue[0].job.model if self._queue else None
            if running and oldest != running[0].model:
                return []
            taken: list[_Waiting[Any]] = []
            left: deque[_Waiting[Any]] = deque()
            room = self.budget_tokens - sum(job.cost_tokens for job in running)
            while self._queue:
                entry = self._queue.popleft()
                is_same_model = entry.job.model == oldest
                if is_same_model and entry.job.cost_tokens > room:
                    left.append(entry)
                    break  # nobody of this model overtakes it
                (taken if is_same_model else left).append(entry)
                room -= entry.job.cost_tokens if is_same_model else 0
            left.extend(self._queue)
            self._queue = left
            return taken

    def _leave_queue(self, batch: Sequence[_Waiting[Any]]) -> None:
        for entry in batch:
            self._metrics.queue_requests.labels(entry.job.model).dec()
            self._metrics.queue_tokens.labels(entry.job.model).dec(entry.job.cost_tokens)

    def _begin(self, waiting: _Waiting[Any], now_s: float) -> None:
        if waiting.future.cancelled():
            return
        job, deadline_s = waiting.job, waiting.job.deadline_s
        cut = None
        if deadline_s is not None and now_s >= deadline_s:
            cut, deadline_s = DEADLINE, None
        with self._failing_alone(waiting):
            piece = Running(job.work, self._model_of(job.model), cut=cut)
            self._started.append(_Started(waiting, piece, now_s, deadline_s))

    def _forward(self) -> None:
        """One wave of everything that runs. A pass that fails, fails all that is in it."""
        entries = self._started
        model = entries[0].waiting.job.model
        self._metrics.batch_sequences.labels(model).observe(len(entries))
        self._metrics.batch_tokens.labels(model).observe(
            sum(entry.piece.num_nodes for entry in entries)
        )
        try:
            answers = forward([entry.piece for entry in entries], self._model_of(model))
        except Exception as error:
            logger.exception("a pass of %d pieces of work failed on %s", len(entries), model)
            self._started = []
            for entry in entries:
                entry.waiting.fail(error)
            return
        self._started = []
        for entry, (piece, log_prob) in zip(entries, answers, strict=True):
            with self._failing_alone(entry.waiting):
                piece.learn(log_prob)
                self._started.append(entry)

    def _settle(self, now_s: float) -> None:
        """Stop what is late, hand out what is over, and forget what nobody waits for."""
        entries, self._started = self._started, []
        for entry in entries:
            future = entry.waiting.future
            if future.cancelled():
                continue
            with self._failing_alone(entry.waiting):
                if not _is_over(entry, now_s):
                    self._started.append(entry)
                    continue
                result = entry.piece.result()
                if future.set_running_or_notify_cancel():
                    future.set_result(Completed(result, entry.started_s, now_s))

    @contextmanager
    def _failing_alone(self, waiting: _Waiting[Any]) -> Iterator[None]:
        """Pass an error to the waiter and nobody else."""
        try:
            yield
        except Exception as error:
            logger.exception("a piece of work failed on %s", waiting.job.model)
            waiting.fail(error)


def _is_over(entry: _Started[Any], now_s: float) -> bool:
    """Whether a piece has nothing left to score; one that is late is asked, once, to stop."""
    if entry.deadline_s is not None and now_s >= entry.deadline_s:
        entry.deadline_s = None
        entry.piece.stop(DEADLINE)
    return entry.piece.is_over
