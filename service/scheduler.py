"""One thread that owns the models, and the queue before it. Knows neither text nor HTTP.

Each forward pass takes, in order of arrival, the queued work of one model that fits the budget.
Every job that was accepted gets a result, an error, or is dropped because its waiter left.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.errors import DrainingError
from service.metrics import Metrics

Item = TypeVar("Item")
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job(Generic[Item]):
    """One piece of work: cost in tree nodes, 0 to the scheduler's budget."""

    model: str
    item: Item
    cost_tokens: int


@dataclass(frozen=True)
class Completed(Generic[Result]):
    """A result and when its forward pass ran, in seconds of the scheduler's clock."""

    result: Result
    started_s: float
    finished_s: float


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    job: Job[Item]
    future: Future[Completed[Result]] = field(default_factory=Future)


class Scheduler(Generic[Item, Result]):
    """Runs jobs in batches on its own thread.

    Args:
        run: (model name, items) -> one result per item, in order; called on the engine thread.
        budget_tokens: most tree nodes in one call of `run`.
        metrics: where queue and batches are measured.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        run: Callable[[str, Sequence[Item]], Sequence[Result]],
        *,
        budget_tokens: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.budget_tokens = budget_tokens
        self._run = run
        self._metrics = metrics
        self._clock = clock
        self._queue: deque[_Waiting[Item, Result]] = deque()
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

    def submit(self, jobs: Sequence[Job[Item]]) -> list[Future[Completed[Result]]]:
        """Queue jobs together, so that they can share a batch; one future per job.

        Raises:
            DrainingError: `stop` was called; none is queued.
            ValueError: one is larger than the budget.
        """
        waiting = [_Waiting[Item, Result](job) for job in jobs]
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

    async def scored(self, jobs: Sequence[Job[Item]]) -> list[Completed[Result]]:
        """Queue jobs together and wait for all of them.

        Raises:
            DrainingError: `stop` was called.
            Exception: whatever `run` raised for the batch of one of them.
        """
        return await asyncio.gather(*map(asyncio.wrap_future, self.submit(jobs)))

    def _work(self) -> None:
        while batch := self._next_batch():
            self._leave_queue(batch)
            wanted = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
            if wanted:
                self._run_batch(wanted)

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """Wait for work and take one batch of it; empty once closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closed)
            taken: list[_Waiting[Item, Result]] = []
            left: deque[_Waiting[Item, Result]] = deque()
            room = self.budget_tokens
            while self._queue:
                entry = self._queue.popleft()
                is_same_model = not taken or entry.job.model == taken[0].job.model
                if is_same_model and entry.job.cost_tokens > room:
                    left.append(entry)
                    break  # nobody of this model overtakes it
                (taken if is_same_model else left).append(entry)
                room -= entry.job.cost_tokens if is_same_model else 0
            left.extend(self._queue)
            self._queue = left
            return taken

    def _leave_queue(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        for entry in batch:
            self._metrics.queue_requests.labels(entry.job.model).dec()
            self._metrics.queue_tokens.labels(entry.job.model).dec(entry.job.cost_tokens)

    def _run_batch(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        model = batch[0].job.model
        self._metrics.batch_sequences.labels(model).observe(len(batch))
        self._metrics.batch_tokens.labels(model).observe(
            sum(entry.job.cost_tokens for entry in batch)
        )
        started_s = self._clock()
        try:
            results = self._run(model, [entry.job.item for entry in batch])
            answered = list(zip(batch, results, strict=True))
        except Exception as error:
            logger.exception("a batch of %d lists failed on model %s", len(batch), model)
            for entry in batch:
                entry.future.set_exception(error)  # the engine outlives a failed batch
            return
        finished_s = self._clock()
        for entry, result in answered:
            entry.future.set_result(Completed(result, started_s, finished_s))
