"""The service from within a decoder's process: an answer in time, or the decoder's own list.

    with Client("http://127.0.0.1:8080", ClientSettings(deadline_ms=300)) as client:
        reply = client.rescore([{"id": "u1", "hypotheses": [{"text": "...", "am_score": -41.2}]}])
    reply.results[0].text, reply.results[0].degraded

Needs httpx and the standard library alone: no torch, no web framework, no numpy. Knows the wire
contract, not how the service keeps it.
"""

from service.client.asks import RefusedRequestError
from service.client.drivers import AsyncClient, Client
from service.client.replies import (
    Hypothesis,
    LatticeReply,
    Problem,
    Reply,
    RescoredList,
    RescoreReply,
    ScoredText,
    ScoreReply,
)
from service.client.settings import Ambient, ClientSettings
from service.client.stats import Stats

__all__ = [
    "Ambient",
    "AsyncClient",
    "Client",
    "ClientSettings",
    "Hypothesis",
    "LatticeReply",
    "Problem",
    "RefusedRequestError",
    "Reply",
    "RescoreReply",
    "RescoredList",
    "ScoreReply",
    "ScoredText",
    "Stats",
]
