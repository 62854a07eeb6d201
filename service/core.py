"""The parts of one running app, built from its settings; this is what the routes are given."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from service.errors import DrainingError, ModelConflictError, NotReadyError
from service.lattice_rescoring import LatticeRescorer
from service.metrics import Metrics
from service.registry import LoadModel, Registry, load_registry
from service.rescoring import Rescorer
from service.scheduler import Scheduler
from service.settings import Settings
from service.text_scoring import TextScorer


@dataclass(frozen=True)
class Core:
    """What answers requests.

    Attributes:
        settings: those of this app.
        metrics: those of this app.
        registry: the loaded models.
        engine: the thread that runs them.
        rescorer: `/v1/rescore`.
        lattice_rescorer: `/v1/rescore/lattice`.
        text_scorer: `/v1/score`.
        draining: set once shutdown has begun.
    """

    settings: Settings
    metrics: Metrics
    registry: Registry
    engine: Scheduler
    rescorer: Rescorer
    lattice_rescorer: LatticeRescorer
    text_scorer: TextScorer
    draining: threading.Event

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
    """
    registry = load_registry(settings.models, load, backend=settings.backend, metrics=metrics)
    for model in registry.models.values():
        largest = model.model.max_tokens + 1
        if settings.budget_tokens < largest:
            raise ModelConflictError(
                f"budget_tokens is {settings.budget_tokens}; one text of {model.name} may need "
                f"{largest} tree nodes, so need at least that"
            )

    engine = Scheduler(
        lambda name: registry.get(name).model,
        budget_tokens=settings.budget_tokens,
        metrics=metrics,
    )
    core = Core(
        settings=settings,
        metrics=metrics,
        registry=registry,
        engine=engine,
        rescorer=Rescorer(registry, engine, metrics),
        lattice_rescorer=LatticeRescorer(registry, engine, metrics, settings),
        text_scorer=TextScorer(registry, engine, metrics),
        draining=draining,
    )
    engine.start()
    return core
