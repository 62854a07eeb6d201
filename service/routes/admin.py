"""/v1/admin: which models are served, and the way out of service. Needs a key of scope admin."""

from __future__ import annotations

import logging

from fastapi import APIRouter

from service.openapi import PROBLEMS
from service.routes.exchange import CoreDep
from service.served_schemas import AdminModel, AdminModelList, ProbeStatus

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/admin", tags=["admin"], responses=PROBLEMS)


@router.get("/models")
async def list_models(core: CoreDep) -> AdminModelList:
    """Every model that is served or could be."""
    return AdminModelList(models=await core.control.list_models())


@router.post("/models/{name}/load")
async def load_model(name: str, core: CoreDep) -> AdminModel:
    """Serve a model of the model folder; nothing is done if it is served with these weights."""
    return await core.control.load(name)


@router.post("/models/{name}/unload")
async def unload_model(name: str, core: CoreDep) -> AdminModel:
    """Serve a model no longer; requests that have begun are finished with it."""
    return await core.control.unload(name)


@router.post("/models/{name}/reload")
async def reload_model(name: str, core: CoreDep) -> AdminModel:
    """Load a model from its folder again; if that fails the old one is served on."""
    return await core.control.reload(name)


@router.post("/drain")
async def drain(core: CoreDep) -> ProbeStatus:
    """Say 503 at /health/ready from now on; requests are answered until the process is stopped."""
    logger.info("draining, as an admin route was asked to")
    core.draining.set()
    return ProbeStatus(status="draining")
