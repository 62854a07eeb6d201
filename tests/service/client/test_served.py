"""The clients and the service itself, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from service.client import AsyncClient, Client, ClientSettings, RefusedRequestError
from tests.fakes import TableModel, fake_loaded
from tests.service.client.driving import ThroughPortal
from tests.service.serving import Json, request, running, utterance

SLF = b"""N=3 L=3
I=0
I=1
I=2
J=0 S=0 E=1 W=the a=-1
J=1 S=1 E=2 W=mat a=-9
J=2 S=1 E=2 W=cat a=-9
"""
LISTS: list[Json] = [
    utterance("the cat sat", "a cat sat", "the mat sat", id="u1"),
    utterance("an old dog", "an old dog ran", id="u2"),
]


@pytest.fixture(scope="module")
def sync_client() -> Iterator[Client]:
    """Of an app with one fake model."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running()) as (_, app),
        Client("http://test", transport=lambda: ThroughPortal(portal, app)) as client,
    ):
        yield client


@asynccontextmanager
async def async_client(
    *models: TableModel, **settings: float
) -> AsyncIterator[tuple[AsyncClient, httpx.AsyncClient]]:
    """The same, and httpx alone beside it."""
    loaded = [fake_loaded(model=model) for model in models]
    async with running(*loaded) as (plain, app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        chosen = ClientSettings(**settings)  # type: ignore[arg-type]
        async with AsyncClient("http://test", chosen, transport=lambda: transport) as client:
            yield client, plain


@pytest.mark.anyio
async def test_the_async_client_gives_the_services_order() -> None:
    async with async_client() as (client, plain):
        reply = await client.rescore(LISTS, weights={"lm_scale": 2.0})
        body = request(*LISTS, weights={"lm_scale": 2.0})
        wanted = (await plain.post("/v1/rescore", json=body)).json()
    assert reply.degraded == ()
    assert [
        [(one.text, one.score, one.posterior, one.input_rank) for one in result.hypotheses]
        for result in reply.results
    ] == [
        [
            (one["text"], one["score"], one["posterior"], one["input_rank"])
            for one in result["hypotheses"]
        ]
        for result in wanted["results"]
    ]
    assert [one.changed for one in reply.results] == [one["changed"] for one in wanted["results"]]


def test_the_blocking_client_gives_it_too(sync_client: Client) -> None:
    reply = sync_client.rescore({"utterances": LISTS, "options": {"n_best": 1}})
    assert reply.degraded == ()
    assert [len(one.hypotheses) for one in reply.results] == [1, 1]
    assert reply.results[0].text in {"the cat sat", "a cat sat", "the mat sat"}
    assert "formula" in reply.body


def test_texts_and_lattices(sync_client: Client) -> None:
    scored = sync_client.score(["the cat sat", "a mat"])
    assert all(one.log_prob is not None and one.log_prob < 0 for one in scored.results)
    found = sync_client.rescore_lattice(SLF, format="htk", first_pass=["the mat"])
    assert found.degraded == ()
    assert found.is_exact
    assert found.text in {"the mat", "the cat"}


def test_the_services_refusal_raises_with_its_pointer(sync_client: Client) -> None:
    with pytest.raises(RefusedRequestError) as caught:
        sync_client.rescore(LISTS, weights={"lm_scal": 1.0})
    assert caught.value.pointer == "/weights/lm_scal"
    assert caught.value.problem.code == "invalid_field"


def test_a_model_that_is_not_loaded_costs_no_transcript(sync_client: Client) -> None:
    reply = sync_client.rescore(LISTS, model="nobody")
    assert reply.degraded == ("refused",)
    assert reply.problem is not None
    assert reply.problem.code == "model_not_found"


def test_one_utterance_that_is_too_long_is_alone_with_that(sync_client: Client) -> None:
    reply = sync_client.rescore([LISTS[0], utterance("cat " * 80, "a cat", id="long")])
    good, bad = reply.results
    assert good.degraded == ()
    assert bad.degraded == ("invalid",)
    assert bad.problem is not None
    assert bad.problem.code == "too_long"
    assert bad.text == "cat " * 80


@pytest.mark.anyio
async def test_an_engine_that_fails_costs_no_transcript() -> None:
    broken = TableModel(error=RuntimeError("broken"))
    async with async_client(broken, backoff_ms=0) as (client, _):
        reply = await client.rescore(LISTS)
        assert client.stats.retries == 2
    assert reply.degraded == ("unavailable",)
    assert [one.text for one in reply.results] == ["the cat sat", "an old dog"]


@pytest.mark.anyio
@pytest.mark.real_clock
async def test_an_engine_that_is_stuck_costs_the_deadline() -> None:
    stuck = TableModel()
    stuck.gate.clear()
    async with async_client(stuck, network_allowance_ms=0) as (client, _):
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        reply = await client.rescore(LISTS, deadline_ms=50)
        took_s = loop.time() - began_s
    assert [one.degraded for one in reply.results] == [("deadline",)] * 2
    assert [one.text for one in reply.results] == ["the cat sat", "an old dog"]
    assert 0.04 < took_s < 2


@pytest.mark.anyio
@pytest.mark.real_clock
async def test_the_service_itself_says_so_where_it_is_told_to_be_quick() -> None:
    stuck = TableModel()
    stuck.gate.clear()
    async with async_client(stuck, network_allowance_ms=9950) as (client, _):
        reply = await client.rescore(LISTS, deadline_ms=10_000, options={"n_best": 2})
        assert client.stats.answered == 1
    assert reply.degraded == ()
    assert [one.degraded for one in reply.results] == [("deadline",)] * 2
    assert [[h.input_rank for h in one.hypotheses] for one in reply.results] == [[1, 2], [1, 2]]
    assert not any(one.changed for one in reply.results)
