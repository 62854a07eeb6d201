"""The story of a request: tokenize, score on the engine, combine, reply.

An utterance that cannot be ranked fails alone. If it is the only one, the request fails with it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import formula
from quantized_lm.errors import InputError
from quantized_lm.scoring import ListScores
from service.deadlines import DEADLINE, OVERLOADED, Arrival, Deadlines
from service.errors import DeadlineExceededError, OverloadedError
from service.jobs import Completed, Job
from service.listwork import (
    CheckedList,
    EngineResults,
    ListRules,
    RankedList,
    UnrankedList,
    place_of,
    prepare_lists,
    rank_lists,
    run_step,
)
from service.lost_work import LostWork
from service.metrics import Metrics
from service.registry import Registry, joint_label, joint_name, joint_revision
from service.replies import effective_weights, gives_posterior, reply_lists, total_usage
from service.scheduler import Scheduler
from service.schemas import Options, RescoreRequest, RescoreResponse
from service.timing import Stopwatch
from service.weighting import KnownWeights
from service.workers import Threads

Result = TypeVar("Result")


class Rescorer:
    """Ranks n-best lists. Runs no model itself: the engine does."""

    def __init__(
        self,
        registry: Registry,
        engine: Scheduler,
        metrics: Metrics,
        deadlines: Deadlines,
        threads: Threads,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._metrics = metrics
        self._deadlines = deadlines
        self._workers = threads.lists
        self._clock = clock
        self._weights = KnownWeights()

    async def rescore(
        self, request: RescoreRequest, request_id: str, arrival: Arrival
    ) -> RescoreResponse:
        """Rank every utterance of a request; at its deadline, in the decoder's order.

        Raises:
            ModelNotFoundError: it names a model that is not loaded.
            InputError: the weights are unusable, or the only utterance is, or the deadline.
            OverloadedError, DeadlineExceededError: it is late, and its options say so; or there is
                no place for long lists.
            DrainingError, NotReadyError: the engine takes no work.
        """
        watch = Stopwatch(self._clock)
        asked_ms = request.options.deadline_ms
        deadline_s = self._deadlines.at_s(arrival, asked_ms, "/options/deadline_ms")
        rules = self._rules(request)
        num_chars = sum([len(h.text) for one in request.utterances for h in one.hypotheses])
        context_chars = sum([len(text) for one in request.utterances for text in one.context.text])
        label, workers = joint_label(rules.models), self._workers
        with self._metrics.inflight.labels(label).track_inprogress():
            read_chars = num_chars + context_chars
            falls_back = request.options.on_overload != "error"
            with place_of(workers, read_chars, falls_back=falls_back):
                prepared = await run_step(
                    workers, read_chars, prepare_lists, request.utterances, rules
                )
            refuse_if_alone(prepared, self._metrics, label)
            watch.lap("tokenize")
            jobs = _jobs(prepared, rules, deadline_s)
            found = await self._results(jobs, request.options, watch, arrival.lost)
            ranked = await run_step(workers, num_chars, rank_lists, prepared, found, rules)
            refuse_if_alone(ranked, self._metrics, label)
            results = await run_step(workers, num_chars, reply_lists, request, ranked, rules.models)
            watch.lap("combine")
        self._metrics.once_sent(self._count, ranked, found, rules.models, label)
        return {
            "id": request_id,
            "model": joint_name(rules.models),
            "revision": joint_revision(rules.models),
            "formula": formula(rules.weights),
            "weights": effective_weights(rules.weights),
            "results": results,
            "timing": watch.finish(self._metrics),
            "usage": total_usage(of_list.usage for of_list in found.scores if of_list),
        }

    async def _results(
        self,
        jobs: Sequence[Job[ListScores]],
        options: Options,
        watch: Stopwatch,
        lost: LostWork,
    ) -> EngineResults:
        """What the engine finds in time; an error instead where that is wished for."""
        completed, reason = await done_in_time(self._engine, jobs, options.on_overload, lost)
        watch.lap_engine(completed)
        scores = [done.result if done else None for done in completed]
        is_late = reason == DEADLINE and any(of_list is None for of_list in scores)
        if is_late and options.on_deadline == "error":
            raise DeadlineExceededError("the deadline passed before every utterance was scored")
        return EngineResults(scores, reason)

    def _rules(self, request: RescoreRequest) -> ListRules:
        models = self._registry.choose(request.model, request.lms)
        return ListRules(
            models=models,
            weights=self._weights.of(request, models),
            posterior_scale=request.options.posterior_scale,
            wants_best_only=request.options.n_best == 1 and not gives_posterior(request.options),
            forbids_oov=request.options.oov == "error",
            budget_tokens=self._engine.budget_tokens,
        )

    def _count(
        self,
        ranked: Sequence[RankedList | UnrankedList | InputError],
        found: EngineResults,
        models: Sequence[LoadedModel],
        label: str,
    ) -> None:
        for model, of_list in zip(itertools.cycle(models), found.scores, strict=False):
            if of_list is not None:
                self._metrics.count_scores(model.name, of_list)
        for one in ranked:
            if isinstance(one, InputError):
                self._metrics.utterances.labels(label, "failed").inc()
                continue
            if isinstance(one, UnrankedList):
                self._metrics.utterances.labels(label, "degraded").inc()
                self._metrics.degraded.labels(label, one.reason).inc()
                continue
            self._metrics.count_ranking(label, one.ranking)


async def done_in_time(
    engine: Scheduler, jobs: Sequence[Job[Result]], on_overload: str, lost: LostWork
) -> tuple[list[Completed[Result] | None], str]:
    """What the engine does by the deadline, None for the rest, and why there may be a rest.

    Args:
        lost: as in `Scheduler.scored`.

    Raises:
        OverloadedError: it takes none of it, and `on_overload` is "error".
        Exception: as `Scheduler.scored`.
    """
    falls_back = on_overload != "error"
    try:
        return await engine.scored(jobs, lost, falls_back=falls_back), DEADLINE
    except OverloadedError:
        if not falls_back:
            raise
        return [None] * len(jobs), OVERLOADED


def refuse_if_alone(lists: Sequence[object], metrics: Metrics, label: str) -> None:
    """Raise the error of the only utterance; among several an error stays where it is.

    Args:
        metrics: where it is counted as failed. label: of its model.
    """
    if len(lists) == 1 and isinstance(lists[0], InputError):
        metrics.utterances.labels(label, "failed").inc()
        raise lists[0]


def _jobs(
    prepared: Sequence[CheckedList | InputError], rules: ListRules, deadline_s: float
) -> list[Job[ListScores]]:
    return [
        Job(model, tree, tree.cost_tokens, deadline_s)
        for checked in prepared
        if not isinstance(checked, InputError)
        for model, tree in zip(rules.models, checked.trees, strict=True)
    ]
