"""`/v1/score`: the probability of texts on their own, by the same engine that rescores."""

from __future__ import annotations

import time
from collections.abc import Callable

from quantized_lm import scoring
from quantized_lm.artifact import LoadedModel
from quantized_lm.errors import InputError
from service.deadlines import Arrival, Deadlines
from service.errors import DeadlineExceededError
from service.jobs import Job
from service.listwork import place_of, prepare_texts, run_step
from service.metrics import Metrics
from service.registry import Registry
from service.replies import scored_texts, total_usage
from service.scheduler import Scheduler
from service.schemas import ScoreRequest, ScoreResponse
from service.timing import Stopwatch
from service.workers import Threads


class TextScorer:
    """Scores texts. Any unusable text fails the request."""

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

    async def score(
        self, request: ScoreRequest, request_id: str, arrival: Arrival
    ) -> ScoreResponse:
        """Score every text of a request.

        Raises:
            ModelNotFoundError: it names a model that is not loaded.
            InputError: a text is too long, or all together are, or the deadline is too late.
            OverloadedError, DeadlineExceededError: it would be late, or is.
            DrainingError, NotReadyError: the engine takes no work.
        """
        watch = Stopwatch(self._clock)
        deadline_s = self._deadlines.at_s(arrival, request.deadline_ms, "/deadline_ms")
        workers = self._workers
        (model,) = self._registry.choose(request.model)
        with self._metrics.inflight.labels(model.name).track_inprogress():
            num_chars = sum(map(len, request.texts))
            read_chars = num_chars + sum(map(len, request.context.text))
            with place_of(workers, read_chars):
                tree = await run_step(workers, read_chars, self._prepare, request, model)
            watch.lap("tokenize")
            job = Job(model, tree, tree.cost_tokens, deadline_s)
            (done,) = await self._engine.scored([job], arrival.lost)
            if done is None:
                raise DeadlineExceededError("the deadline passed before the texts were scored")
            watch.lap_engine([done])
            scores = done.result
            results = await run_step(workers, num_chars, scored_texts, request, scores, model)
            watch.lap("combine")
        self._metrics.once_sent(self._metrics.count_scores, model.name, scores)
        return {
            "id": request_id,
            "model": model.name,
            "revision": model.revision,
            "results": results,
            "timing": watch.finish(self._metrics),
            "usage": total_usage([scores.usage]),
        }

    def _prepare(self, request: ScoreRequest, model: LoadedModel) -> scoring.PreparedList:
        texts = scoring.ScoreRequest(
            tuple(request.texts), tuple(request.context.text), request.final
        )
        try:
            encoded = model.tokenizer.encode_all(texts.texts)
            return prepare_texts(texts, encoded, model, self._engine.budget_tokens)
        except InputError as error:
            at = error.pointer.replace("/hypotheses", "/texts").removesuffix("/text")
            raise type(error)(str(error), pointer=at) from None
