"""GET /v1/models: what is loaded, how it is packed, where it comes from."""

from __future__ import annotations

from fastapi import APIRouter

from service.model_info import model_detail, model_summary
from service.openapi import PROBLEMS
from service.routes.exchange import CoreDep
from service.served_schemas import ModelDetail, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"], responses=PROBLEMS)


@router.get("")
async def list_models(core: CoreDep) -> ModelList:
    """Every loaded model."""
    return ModelList(models=[model_summary(model) for model in core.registry.models.values()])


@router.get("/{model_id}")
async def show_model(model_id: str, core: CoreDep) -> ModelDetail:
    """One loaded model, tensor by tensor."""
    return model_detail(core.registry.get(model_id))
