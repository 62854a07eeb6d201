"""POST /v1/score."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends

from service.middleware import require_json
from service.openapi import PROBLEMS
from service.routes.exchange import CoreDep, ExchangeDep
from service.schemas import ScoreRequest, ScoreResponse

router = APIRouter(tags=["scoring"], responses=PROBLEMS, dependencies=[Depends(require_json)])

EXAMPLE = {"texts": ["the weather is nice today", "the whether is nice today"]}
ScoreBody = Annotated[ScoreRequest, Body(examples=[EXAMPLE])]


@router.post("/v1/score")
async def score(body: ScoreBody, core: CoreDep, exchange: ExchangeDep) -> ScoreResponse:
    """Log-probability and perplexity of texts, per token and per word."""
    return exchange.annotated(await core.text_scorer.score(body, exchange.request_id))
