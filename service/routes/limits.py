"""GET /v1/limits."""

from __future__ import annotations

from fastapi import APIRouter

from service.openapi import PROBLEMS
from service.routes.exchange import CoreDep
from service.served_schemas import Limits

router = APIRouter(tags=["models"], responses=PROBLEMS)


@router.get("/v1/limits")
async def show_limits(core: CoreDep) -> Limits:
    """What a request may hold; anything above is refused, never cut."""
    models = core.registry.models.values()
    return Limits(
        body_bytes=core.settings.max_body_bytes,
        lattice_body_bytes=core.settings.max_lattice_body_bytes,
        lattice_arcs=core.settings.max_lattice_arcs,
        tree_nodes_per_utterance=core.settings.budget_tokens,
        default_deadline_ms=core.settings.default_deadline_ms,
        deadline_ms=core.settings.max_deadline_ms,
        queued_requests=core.settings.max_queued_requests,
        queued_tokens=core.settings.queue_tokens,
        tokens_per_text={model.name: model.model.max_tokens - 1 for model in models},
    )
