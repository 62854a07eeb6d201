"""Health probes and metrics. Live never depends on load or on models."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.openapi import PROBLEMS
from service.routes.exchange import CoreDep
from service.served_schemas import ProbeStatus

router = APIRouter(tags=["operations"])
metrics_router = APIRouter(tags=["operations"])


@router.get("/health/live", responses=PROBLEMS)
async def live(core: CoreDep) -> ProbeStatus:
    """The event loop answers; 503 if the engine thread has died, which only a restart mends."""
    core.require_alive()
    return ProbeStatus(status="live")


@router.get("/health/startup")
async def startup() -> ProbeStatus:
    """Models are loaded and verified: before that the port is closed."""
    return ProbeStatus(status="started")


@router.get("/health/ready", responses=PROBLEMS)
async def ready(core: CoreDep) -> ProbeStatus:
    """New requests are welcome; 503 once shutdown has begun."""
    core.require_ready()
    return ProbeStatus(status="ready")


@metrics_router.get("/metrics", response_class=Response)
async def metrics(request: Request, core: CoreDep) -> Response:
    """Prometheus text format."""
    content, content_type = core.metrics.render(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})
