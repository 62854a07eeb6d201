"""POST /v1/rescore."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends

from service.middleware import require_json
from service.openapi import PROBLEMS
from service.routes.exchange import CoreDep, ExchangeDep
from service.schemas import RescoreRequest, RescoreResponse

router = APIRouter(tags=["scoring"], responses=PROBLEMS, dependencies=[Depends(require_json)])

EXAMPLE = {
    "utterances": [
        {
            "id": "u1",
            "hypotheses": [
                {"text": "the whether is nice today", "am_score": -10.1},
                {"text": "the weather is nice today", "am_score": -10.4},
            ],
        }
    ]
}
RescoreBody = Annotated[RescoreRequest, Body(examples=[EXAMPLE])]


@router.post("/v1/rescore")
async def rescore(body: RescoreBody, core: CoreDep, exchange: ExchangeDep) -> RescoreResponse:
    """Rank the n-best lists of 1 to 64 utterances."""
    return exchange.annotated(await core.rescorer.rescore(body, exchange.request_id))
