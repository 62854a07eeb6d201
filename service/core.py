"""The parts of one running app, built from its settings; this is what the routes are given."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from service.admission import QueueLimits
from service.deadlines import Deadlines
from service.errors import DrainingError, NotReadyError
from service.lattice_rescoring import LatticeRescorer
from service.metrics import Metrics
from service.model_control import ModelControl
from service.prefix_caches import PrefixCaches
from service.registry import LoadModel, Registry, load_registry, require_budget
from service.rescoring import Rescorer
from service.scheduler import Scheduler
from service.settings import Settings
from service.text_scoring import TextScorer
from service.workers import Threads, WorkerLimits, start_threads


@dataclass(frozen=True)
class Core:
    """What answers requests.

    Attributes:
        settings: those of this app.
        metrics: those of this app.
        registry: the loaded models.
        control: changes which those are.
        deadlines: the server's rule.
        engine: the thread that runs them.
        rescorer: `/v1/rescore`.
        lattice_rescorer: `/v1/rescore/lattice`.
        text_scorer: `/v1/score`.
        threads: for steps that would keep the event loop.
        draining: set once shutdown has begun.
    """

    settings: Settings
    metrics: Metrics
    registry: Registry
    control: ModelControl
    deadlines: Deadlines
    engine: Scheduler
    rescorer: Rescorer
    lattice_rescorer: LatticeRescorer
    text_scorer: TextScorer
    threads: Threads
    draining: threading.Event

    def require_alive(self) -> None:
        """Pass unless only a restart can help.

        Raises:
            NotReadyError: the engine thread has died.
        """
        if self.engine.has_died:
            raise NotReadyError("the engine thread has died; need a restart")

    def require_ready(self) -> None:
        """Pass if new requests are welcome.

        Raises:
            DrainingError: shutdown has begun.
            NotReadyError: the engine thread is not running.
        """
        if self.draining.is_set():
            raise DrainingError("shutdown has begun; need another server")
        if not self.engine.is_alive:
            raise NotReadyError("the engine thread is not running; need a restart")


def start_core(
    settings: Settings, metrics: Metrics, draining: threading.Event, load: LoadModel
) -> Core:
    """Load the models and start the engine.

    Raises:
        ArtifactError: a model is refused.
        ModelConflictError: two models have one name, or the budget is below one longest text.
        WeightsFileError: the weights to count with are unusable, or of no model that is served.
    """
    registry = load_registry(settings.models, load, backend=settings.backend, metrics=metrics)
    for model in registry.models.values():
        require_budget(model, settings.budget_tokens)
    control = ModelControl(registry, load, settings, metrics)
    control.tuned_weights()  # which are refused at once where they would never count
    engine = Scheduler(
        limits=QueueLimits(
            settings.budget_tokens, settings.max_queued_requests, settings.queue_tokens
        ),
        metrics=metrics,
        caches=PrefixCaches(settings.prefix_cache_bytes, metrics),
    )
    most = settings.max_queued_requests
    threads = start_threads(
        WorkerLimits(most, settings.max_body_bytes),
        WorkerLimits(most, settings.max_lattice_body_bytes),
        metrics,
    )
    deadlines = Deadlines(settings.default_deadline_ms, settings.max_deadline_ms)
    core = Core(
        settings=settings,
        metrics=metrics,
        registry=registry,
        control=control,
        deadlines=deadlines,
        engine=engine,
        rescorer=Rescorer(registry, engine, metrics, deadlines, threads),
        lattice_rescorer=LatticeRescorer(registry, engine, metrics, settings, threads),
        text_scorer=TextScorer(registry, engine, metrics, deadlines, threads),
        threads=threads,
        draining=draining,
    )
    engine.start()
    return core
