"""POST /v1/score."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from service.openapi import ENGINE_PROBLEMS
from service.routes.exchange import arrival_of, core_of, request_id_of, respond
from service.schemas import ScoreRequest, ScoreResponse

router = APIRouter(tags=["scoring"], responses=ENGINE_PROBLEMS)

EXAMPLE = {"texts": ["the weather is nice today", "the whether is nice today"]}
ScoreBody = Annotated[ScoreRequest, Body(examples=[EXAMPLE])]


@router.post("/v1/score", response_model=ScoreResponse)
async def score(body: ScoreBody, request: Request) -> Response:
    """Log-probability and perplexity of texts, per token and per word."""
    scorer = core_of(request).text_scorer
    return respond(request, await scorer.score(body, request_id_of(request), arrival_of(request)))
