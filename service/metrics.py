"""Every Prometheus metric, named and with its unit; only what is measured. One registry per app."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prometheus_client import Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from quantized_lm.combine import Ranking
from quantized_lm.lattice_scoring import LatticeScores
from quantized_lm.scoring import ListScores
from service.late_registry import LateRegistry

# 0.1 ms to 13 s: a rescorer answers in milliseconds, a full queue in seconds.
SECONDS = tuple(1e-4 * 1.5**step for step in range(30))
TOKENS = tuple(float(1 << step) for step in range(17))
SEQUENCES = tuple(float(1 << step) for step in range(11))
RATIOS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 25.0, 50.0)
NATS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
REFUSED_CONNECTIONS = ("too_many", "head_too_large", "not_http")
OTHER_MODEL = "other"
SEVERAL_MODELS = "several"
Metric = TypeVar("Metric", Counter, Gauge, Histogram)
Args = ParamSpec("Args")


class Metrics:
    """The metrics of one app. Labels are routes, stages and names of loaded models: bounded."""

    def __init__(self) -> None:
        self.registry = LateRegistry()
        self._requests()
        self._work()
        self._lattices()
        self._models()
        self._queueing()
        self._refusals()
        self._process()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition text and its content type, in the format the scraper accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def once_sent(
        self, count: Callable[Args, None], *args: Args.args, **kwargs: Args.kwargs
    ) -> None:
        """Count something after the answer that the event loop is about to send."""
        self.registry.later(functools.partial(count, *args, **kwargs))

    def count_scores(self, model: str, scores: ListScores) -> None:
        """Count the work of one list on one LM."""
        usage = scores.usage
        self.hypotheses.labels(model).inc(usage.hypotheses)
        self.tokens.labels(model, "requested").inc(usage.tokens)
        distinct = scores.prepared.tree.num_scored
        self.tokens.labels(model, "scored").inc(usage.tree_nodes)
        self.tokens.labels(model, "skipped").inc(usage.skipped_nodes)
        self.tokens.labels(model, "cached").inc(distinct - usage.tree_nodes - usage.skipped_nodes)
        self.tokens.labels(model, "deduplicated").inc(usage.tokens - distinct)
        self.oov.labels(model).inc(int(scores.prepared.encoded.num_oov.sum()))
        if usage.tree_nodes:
            self.sharing.labels(model).observe(usage.tokens / usage.tree_nodes)

    def count_ranking(self, model: str, ranking: Ranking) -> None:
        """Count one utterance: whether its best hypothesis changed, and by how much it won.

        Where hypotheses were given up, the second best is not known.
        """
        self.utterances.labels(model, "ranked").inc()
        self.rank_changed.labels(model).inc(int(ranking.order[0] != 0))
        if len(ranking.order) > 1 and ranking.total.min() > -math.inf:
            best, second = ranking.total[ranking.order[:2]].tolist()
            self.score_margin.labels(model).observe(best - second)

    def count_lattice(self, model: str, scores: LatticeScores) -> None:
        """Count one lattice, and the budgets that ended its search."""
        usage = scores.usage
        self.utterances.labels(model, "ranked" if scores.is_scored else "degraded").inc()
        self.lattice_arcs.labels(model).observe(usage.arcs)
        self.lattice_lm_steps.labels(model).observe(usage.lm_steps)
        self.hypotheses.labels(model).inc(usage.sequences)
        self.tokens.labels(model, "scored").inc(usage.tree_nodes)
        for reason in scores.degraded:
            self.degraded.labels(model, reason).inc()

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Count one stage of one request."""
        self.stage_duration.labels(stage).observe(seconds)

    def _requests(self) -> None:
        self.requests = self._counter(
            "rescore_requests", "Requests answered.", ("route", "model", "outcome")
        )
        self.request_duration = self._histogram(
            "rescore_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ("route", "model"),
            SECONDS,
        )
        self.stage_duration = self._histogram(
            "rescore_stage_duration_seconds", "Time of one stage of a request.", ("stage",), SECONDS
        )
        self.inflight = self._gauge(
            "rescore_inflight_requests", "Requests being worked on.", ("model",)
        )
        self.utterances = self._counter(
            "rescore_utterances",
            "Utterances of /v1/rescore and /v1/rescore/lattice, ranked or failed.",
            ("model", "outcome"),
        )
        self.rank_changed = self._counter(
            "rescore_rank_changed", "Utterances whose best hypothesis changed.", ("model",)
        )
        self.score_margin = self._histogram(
            "rescore_score_margin",
            "Score of the best hypothesis minus that of the second, nats.",
            ("model",),
            NATS,
        )

    def _work(self) -> None:
        self.queue_requests = self._gauge(
            "rescore_queue_requests", "Lists that wait for the engine.", ("model",)
        )
        self.queue_tokens = self._gauge(
            "rescore_queue_tokens", "Tree nodes that wait for the engine.", ("model",)
        )
        self.batch_tokens = self._histogram(
            "rescore_batch_tokens", "Tree nodes in one forward pass.", ("model",), TOKENS
        )
        self.batch_sequences = self._histogram(
            "rescore_batch_sequences", "Lists in one forward pass.", ("model",), SEQUENCES
        )
        self.hypotheses = self._counter("rescore_hypotheses", "Texts scored.", ("model",))
        self.tokens = self._counter(
            "rescore_tokens",
            "Token log-probabilities: asked for, computed, shared with another text, known from an "
            "earlier request, skipped; computed for work that was then given up, or failed.",
            ("model", "kind"),
        )
        self.sharing = self._histogram(
            "rescore_sharing_ratio",
            "Token log-probabilities asked for per one computed, of one list.",
            ("model",),
            RATIOS,
        )
        self.oov = self._counter(
            "rescore_oov_tokens", "Words that hold the unknown token.", ("model",)
        )
        self.prefix_cache = {
            event: self._counter(f"rescore_prefix_cache_{name}", text, ("model",))
            for event, name, text in (
                ("hit", "hits", "Contexts found whole, lists without one to half, in a kept tree."),
                ("miss", "misses", "Contexts and partial lists found to less."),
                ("eviction", "evictions", "Kept trees forgotten for want of room."),
            )
        }
        self.prefix_cache_bytes = Gauge(
            "rescore_prefix_cache_bytes", "Memory of kept trees.", registry=self.registry
        )

    def _lattices(self) -> None:
        self.lattice_arcs = self._histogram(
            "rescore_lattice_arcs", "Arcs of one lattice.", ("model",), TOKENS
        )
        self.lattice_lm_steps = self._histogram(
            "rescore_lattice_lm_steps",
            "Nodes that one lattice had run through the network.",
            ("model",),
            TOKENS,
        )
        self.degraded = self._counter(
            "rescore_degraded",
            "Lists that kept the decoder's order, lattices whose search ended early, by reason.",
            ("model", "reason"),
        )

    def _models(self) -> None:
        self.model_info = self._changing(
            "rescore_model_info",
            "Always 1.",
            ("model", "revision", "arch", "bits", "kernel"),
        )
        self.model_loaded = self._changing(
            "rescore_model_loaded", "1 while it is served.", ("model",)
        )
        self.model_load = self._changing(
            "rescore_model_load_seconds", "Time to load and check it.", ("model",)
        )
        self.model_bytes = self._changing(
            "rescore_model_bytes", "Size of the packed weights.", ("model", "kind")
        )
        self.model_reloads = self._counter(
            "rescore_model_reloads",
            "Models loaded, reloaded or unloaded while serving, by how it ended.",
            ("model", "outcome"),
        )

    def _refusals(self) -> None:
        self.auth_failures = self._counter(
            "rescore_auth_failures", "Requests refused for want of a key or a scope.", ("reason",)
        )
        self.read_timeouts = self._counter(
            "rescore_read_timeouts",
            "Connections closed because a request did not come, or nobody took an answer.",
            (),
        )
        self.refused_connections = self._counter(
            "rescore_connections_refused",
            "Connections refused before a request was seen, by reason.",
            ("reason",),
        )
        for reason in REFUSED_CONNECTIONS:
            self.refused_connections.labels(reason)  # 0 from the start: the first one is a rise

    def _queueing(self) -> None:
        self.shed = self._counter(
            "rescore_shed",
            "Requests refused, whatever they asked for, by reason.",
            ("model", "reason"),
        )
        self.cost = self._gauge(
            "rescore_cost_seconds",
            "What a tree node, a forward pass and a job are expected to take.",
            ("model", "term"),
        )
        self.predicted_wait = Gauge(
            "rescore_predicted_wait_seconds",
            "How long a request would wait behind all that is queued.",
            registry=self.registry,
        )
        self.pass_overdue = Gauge(
            "rescore_pass_overdue_seconds",
            "How long ago the forward pass under way should have ended.",
            registry=self.registry,
        )

    def _changing(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        """A gauge whose series may be removed, so none is remembered."""
        return Gauge(name, text, labels, registry=self.registry)

    def _process(self) -> None:
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files
        self.log_failures = Counter(
            "rescore_log_failures", "Log lines that were lost.", registry=self.registry
        )
        self.queue_age = Gauge(
            "rescore_queue_age_seconds",
            "How long the job that has waited longest for the engine has waited.",
            registry=self.registry,
        )

        self.loop_lag = Gauge(
            "rescore_loop_lag_seconds",
            "How far the event loop is behind: reads of requests and writes of answers.",
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return _remembering(Counter(name, text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return _remembering(Gauge(name, text, labels, registry=self.registry))

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return _remembering(Histogram(name, text, labels, buckets=buckets, registry=self.registry))


def _remembering(metric: Metric) -> Metric:
    """A metric that finds a series it knows in a twentieth of the time; a request counts on 20."""
    metric.labels = functools.cache(metric.labels)  # type: ignore[method-assign]
    return metric
