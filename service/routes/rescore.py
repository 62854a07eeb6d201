"""POST /v1/rescore."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from service.openapi import ENGINE_PROBLEMS
from service.routes.exchange import arrival_of, core_of, request_id_of, respond
from service.schemas import RescoreRequest, RescoreResponse

router = APIRouter(tags=["scoring"], responses=ENGINE_PROBLEMS)

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


@router.post("/v1/rescore", response_model=RescoreResponse)
async def rescore(body: RescoreBody, request: Request) -> Response:
    """Rank the n-best lists of 1 to 64 utterances."""
    rescorer = core_of(request).rescorer
    return respond(
        request, await rescorer.rescore(body, request_id_of(request), arrival_of(request))
    )
