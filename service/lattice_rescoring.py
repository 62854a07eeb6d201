"""The story of a lattice: read, tokenize, search with the engine's help, reply.

A lattice that cannot be rescored fails alone. If it is the only one, the request fails with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Weights, formula
from quantized_lm.errors import InputError
from quantized_lm.lattice_scoring import LatticeScores, arc_weights
from quantized_lm.waves import cut_short
from service.deadlines import Arrival, Deadlines
from service.errors import relocated
from service.jobs import Job
from service.lattice_replies import lattice_usage, reply_lattices
from service.lattice_schemas import LatticeOptions, LatticeResponse
from service.latticework import (
    AskedLattices,
    CheckedLattice,
    LatticeRules,
    UnreadLattices,
    prepare_lattices,
)
from service.lost_work import LostWork
from service.metrics import Metrics
from service.registry import Registry
from service.replies import effective_weights
from service.rescoring import done_in_time, refuse_if_alone
from service.scheduler import Scheduler
from service.settings import Settings
from service.timing import Stopwatch
from service.weighting import KnownWeights
from service.workers import Threads


class LatticeRescorer:
    """Finds the best sequences of lattices. Runs no model itself: the engine does.

    All work on a lattice but the engine's is a thread's: reading one takes longer than the event
    loop may be kept. The threads are its own, so that lists never wait for lattices.
    """

    def __init__(
        self,
        registry: Registry,
        engine: Scheduler,
        metrics: Metrics,
        settings: Settings,
        threads: Threads,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._metrics = metrics
        self._settings = settings
        self._deadlines = Deadlines(settings.default_deadline_ms, settings.max_deadline_ms)
        self._threads = threads
        self._clock = clock
        self._weights = KnownWeights()

    async def rescore(
        self, unread: UnreadLattices, request_id: str, arrival: Arrival
    ) -> LatticeResponse:
        """Rescore every lattice of a request; at its deadline, with the best that is known.

        Raises:
            RequestValidationError: the body does not fit the schema.
            ModelNotFoundError: it names a model that is not loaded.
            InputError: the weights are unusable, several LMs are named, or the only lattice is
                unusable, or the deadline is too late.
            OverloadedError: it would be late, and its options say so; or too much is being read.
            DeadlineExceededError: it could not be read in time.
            DrainingError, NotReadyError: the engine takes no work.
        """
        with contextlib.ExitStack() as working:
            with self._threads.lattices.place(unread.size_bytes):
                asked = await self._asked(unread, arrival)
                watch = Stopwatch(self._clock)
                deadline_s = self._deadline_s(asked, arrival)
                model = self._model(asked)
                weights = self._weights.of(asked.choice, [model])
                rules = self._rules(asked, model, weights)
                inflight = self._metrics.inflight.labels(model.name)
                working.enter_context(inflight.track_inprogress())
                checked = await self._checked(asked, rules, deadline_s)
            refuse_if_alone([one.prepared for one in checked], self._metrics, model.name)
            watch.lap("tokenize")
            jobs = self._jobs(checked, rules, deadline_s)
            scores = await self._scores(jobs, rules.options, watch, arrival.lost)
            results = await self._threads.replies.run(
                reply_lattices, checked, scores, model.name, rules.options
            )
            usage = lattice_usage(scores)
            watch.lap("combine")
        self._metrics.once_sent(self._count, checked, scores, model.name)
        return {
            "id": request_id,
            "model": model.name,
            "revision": model.revision,
            "formula": formula(weights),
            "weights": effective_weights(weights),
            "results": results,
            "timing": watch.finish(self._metrics),
            "usage": usage,
        }

    async def _asked(self, unread: UnreadLattices, arrival: Arrival) -> AskedLattices:
        started_s = self._clock()
        latest_s = self._deadlines.latest_s(arrival, may_ask=unread.may_ask)
        asked = await self._threads.lattices.run_by(latest_s, unread.read)
        self._metrics.observe_stage("parse", self._clock() - started_s)
        return asked

    async def _checked(
        self, asked: AskedLattices, rules: LatticeRules, deadline_s: float
    ) -> list[CheckedLattice]:
        """Every lattice, ready for the engine; a body that is none fails as a lattice does."""
        lattices = self._threads.lattices
        try:
            return await lattices.run_by(deadline_s, prepare_lattices, asked.sources, rules)
        except InputError:
            self._metrics.utterances.labels(rules.model.name, "failed").inc()
            raise

    def _model(self, asked: AskedLattices) -> LoadedModel:
        models = self._registry.choose(asked.choice.model, asked.choice.lms)
        if len(models) > 1:
            raise InputError(
                f"lms names {len(models)} models; need one, as a lattice is searched with one LM",
                pointer="/lms",
            )
        return models[0]

    def _rules(self, asked: AskedLattices, model: LoadedModel, weights: Weights) -> LatticeRules:
        try:
            counting = arc_weights(weights)
        except InputError as error:
            raise relocated(error, "/weights") from None
        return LatticeRules(
            model=model,
            arc_weights=counting,
            lm_scale=weights.lm_scales[model.name],
            options=asked.options,
            max_arcs=self._settings.max_lattice_arcs,
            max_bytes=self._settings.max_lattice_body_bytes,
        )

    def _deadline_s(self, asked: AskedLattices, arrival: Arrival) -> float:
        is_query = any(source.pointer is None for source in asked.sources)
        pointer = "/deadline_ms" if is_query else "/options/deadline_ms"
        return self._deadlines.at_s(arrival, asked.options.deadline_ms, pointer)

    async def _scores(
        self,
        jobs: Sequence[Job[LatticeScores]],
        options: LatticeOptions,
        watch: Stopwatch,
        lost: LostWork,
    ) -> list[LatticeScores]:
        """What the engine finds in time; without it, the lattices' own order."""
        completed, cut = await done_in_time(self._engine, jobs, options.on_overload, lost)
        watch.lap_engine(completed)
        return [
            done.result if done else await self._threads.replies.run(cut_short, job.work, cut)
            for job, done in zip(jobs, completed, strict=True)
        ]

    def _jobs(
        self, checked: Sequence[CheckedLattice], rules: LatticeRules, deadline_s: float
    ) -> list[Job[LatticeScores]]:
        budget = self._engine.budget_tokens
        return [
            Job(
                rules.model,
                one.prepared,
                min(one.prepared.cost_tokens, budget),
                deadline_s,
                is_anytime=True,
            )
            for one in checked
            if not isinstance(one.prepared, InputError)
        ]

    def _count(
        self, checked: Sequence[CheckedLattice], scores: Sequence[LatticeScores], label: str
    ) -> None:
        failed = sum(isinstance(one.prepared, InputError) for one in checked)
        self._metrics.utterances.labels(label, "failed").inc(failed)
        for one in scores:
            self._metrics.count_lattice(label, one)
