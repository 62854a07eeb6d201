"""Deadlines and overload, as a client sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import TypeAdapter
from starlette.types import Message

from quantized_lm.errors import InputError
from service.admission import QueueLimits
from service.deadlines import Arrival, Deadlines, parse_timeout_ms
from service.lattice_schemas import LatticeResponse
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.schemas import RescoreResponse
from service.settings import Settings
from tests.fakes import TableModel, TableState, fake_loaded
from tests.quantized_lm.lattice.random_lattices import random_lattice
from tests.service.engine_fakes import DoublingModel, job, run, sample
from tests.service.serving import Json, lattice_entry, request, running, utterance

LATTICE = "/v1/rescore/lattice"
SHORT: Json = {"deadline_ms": 15.0}  # of a request behind an engine that answers nobody


@pytest.mark.parametrize(
    ("asked_ms", "header_ms", "allowed_s"),
    [
        (None, None, 2.0),
        (500.0, None, 0.5),
        (None, 500.0, 0.5),
        (500.0, 700.0, 0.5),
        (700.0, 500.0, 0.5),
        (9_000.0, None, 9.0),
        (None, 9_000.0, 9.0),
        (None, 99_000.0, 10.0),
    ],
)
def test_the_smallest_of_what_is_said_holds(
    asked_ms: float | None, header_ms: float | None, allowed_s: float
) -> None:
    deadlines = Deadlines(default_ms=2_000.0, max_ms=10_000.0)
    assert deadlines.at_s(Arrival(3.0, header_ms), asked_ms, "/x") == 3.0 + allowed_s


def test_a_deadline_above_the_maximum_is_refused() -> None:
    with pytest.raises(InputError, match="need at most 10000") as refused:
        Deadlines(2_000.0, 10_000.0).at_s(Arrival(0.0), 10_000.1, "/options/deadline_ms")
    assert refused.value.pointer == "/options/deadline_ms"


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1e999"])
def test_a_header_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="X-Request-Timeout-Ms"):
        parse_timeout_ms(text)


def test_a_default_above_the_maximum_is_refused() -> None:
    words = "DEFAULT_DEADLINE_MS is 2000; need at most SECONDPASS_MAX_DEADLINE_MS, which is 1000"
    with pytest.raises(ValueError, match=words):
        Settings(default_deadline_ms=2_000.0, max_deadline_ms=1_000.0)


@asynccontextmanager
async def stuck(
    model: TableModel | None = None, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI, TableModel]]:
    """An app whose engine is busy for as long as the gate of its model is closed."""
    model = model or TableModel()
    async with running(fake_loaded(model=model), **settings) as (client, app):
        model.gate.clear()
        body = request(options={"deadline_ms": 30_000.0})
        busy = asyncio.create_task(client.post("/v1/rescore", json=body))
        while not model.entered.is_set():
            await asyncio.sleep(0)
        try:
            yield client, app, model
        finally:
            model.gate.set()
            assert (await busy).status_code == 200


def count(app: FastAPI, name: str, **labels: str) -> float:
    """One number of the metrics."""
    return app.state.core.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.anyio
async def test_at_its_deadline_a_list_comes_back_in_the_decoders_order() -> None:
    texts = "zzz", "the cat sat", "a cat sat"
    async with stuck() as (client, app, _):
        body = request(utterance(*texts, id="u"), options={**SHORT, "n_best": 2})
        response = await client.post("/v1/rescore", json=body)
        route = {"route": "/v1/rescore", "model": "tiny", "outcome": "degraded"}
        assert count(app, "rescore_requests_total", **route) == 1.0
        assert count(app, "rescore_degraded_total", model="tiny", reason="deadline") == 1.0
        assert count(app, "rescore_utterances_total", model="tiny", outcome="degraded") == 1.0
        assert count(app, "rescore_queue_requests", model="tiny") == 0.0
    reply = response.json()
    (result,) = reply["results"]
    assert (response.status_code, reply["id"]) == (200, response.headers["X-Request-ID"])
    assert (result["id"], result["changed"], result["degraded"]) == ("u", False, ["deadline"])
    assert [one["text"] for one in result["hypotheses"]] == [*texts[:2]]
    first = result["hypotheses"][0]
    assert (first["rank"], first["input_rank"], first["oov"]) == (1, 1, ["zzz"])
    assert first["components"] == {"am": -1.0, "graph": None, "lm": {"tiny": None}, "extra": {}}
    assert (first["score"], first["posterior"]) == (None, None)
    assert (first["num_words"], first["num_chars"]) == (1, 3)
    assert reply["usage"]["tree_nodes"] == 0
    assert reply["timing"]["queue_ms"] > 1.0
    TypeAdapter(RescoreResponse).validate_json(response.content)


@pytest.mark.anyio
async def test_the_header_bounds_every_route() -> None:
    headers = {"X-Request-Timeout-Ms": "400"}  # a lattice has to be read by then
    body = {"lattices": [lattice_entry(random_lattice(0))]}
    async with stuck() as (client, _, _):
        ranked = await client.post("/v1/rescore", json=request(), headers=headers)
        found = await client.post(LATTICE, json=body, headers=headers)
        scored = await client.post("/v1/score", json={"texts": ["the"]}, headers=headers)
        wrong = await client.post(
            "/v1/rescore", json=request(), headers={**headers, "X-Request-Timeout-Ms": "x"}
        )
    assert ranked.json()["results"][0]["degraded"] == ["deadline"]
    assert found.json()["results"][0]["degraded"] == ["deadline"]
    assert (scored.status_code, scored.json()["code"]) == (504, "deadline_exceeded")
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_field")


@pytest.mark.anyio
async def test_who_wants_an_error_at_the_deadline_gets_504() -> None:
    options = {**SHORT, "on_deadline": "error"}
    async with stuck() as (client, app, _):
        ranked = await client.post("/v1/rescore", json=request(options=options))
        scored = await client.post("/v1/score", json={"texts": ["the"], **SHORT})
        route = {"route": "/v1/rescore", "model": "other", "outcome": "deadline"}
        assert count(app, "rescore_requests_total", **route) == 1.0
    for response in (ranked, scored):
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        assert response.headers["Retry-After"] == "1"


class SecondPassStuck(TableModel):
    """Closes its own gate before its second pass."""

    def extend(
        self,
        states: Sequence[TableState],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """As LanguageModel.extend."""
        if len(self.batch_sizes) == 1:
            self.gate.clear()
        return super().extend(states, parents, tokens)


@pytest.mark.anyio
async def test_utterances_that_were_done_in_time_keep_their_ranking() -> None:
    long = [
        f"{word} cat sat on a mat and saw an old dog" for word in ("the", "a", "old", "an", "dog")
    ]
    body = request(utterance("the cat", "a cat"), utterance(*long), options={"deadline_ms": 1000.0})
    async with running() as (client, _):
        whole = (await client.post("/v1/rescore", json=body)).json()
    assert whole["usage"]["tree_nodes"] > 65
    async with running(fake_loaded(model=SecondPassStuck()), budget_tokens=65) as (client, app):
        reply = (await client.post("/v1/rescore", json=body)).json()
        assert count(app, "rescore_degraded_total", model="tiny", reason="deadline") == 1.0
    first, second = reply["results"]
    assert first == whole["results"][0]
    assert (first["degraded"], second["degraded"]) == ([], ["deadline"])


@pytest.mark.anyio
async def test_a_lattice_behind_a_stuck_engine_is_answered_by_its_own_order() -> None:
    body = {"lattices": [lattice_entry(random_lattice(0))], "options": {"deadline_ms": 400.0}}
    async with stuck() as (client, app, _):
        response = await client.post(LATTICE, json=body)
        assert count(app, "rescore_degraded_total", model="tiny", reason="deadline") == 1.0
    (result,) = response.json()["results"]
    assert (result["degraded"], result["exact"]) == (["deadline"], False)
    assert result["hypotheses"][0]["components"]["lm"] == {"tiny": None}
    TypeAdapter(LatticeResponse).validate_json(response.content)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/rescore", LATTICE, "/v1/score"])
async def test_who_finds_the_queue_full_is_told_when_to_come_again(path: str) -> None:
    bodies: dict[str, Json] = {
        "/v1/rescore": request(),
        LATTICE: {"lattices": [lattice_entry(random_lattice(0))]},
        "/v1/score": {"texts": ["the cat"]},
    }
    async with stuck(max_queued_requests=1) as (client, app, model):
        waiting = asyncio.create_task(client.post("/v1/rescore", json=request()))
        while not count(app, "rescore_queue_requests", model="tiny"):
            await asyncio.sleep(0)
        refused = await client.post(path, json=bodies[path])
        assert count(app, "rescore_shed_total", model="tiny", reason="queue_full") == 1.0
        route = {"route": path, "model": "other", "outcome": "overloaded"}
        assert count(app, "rescore_requests_total", **route) == 1.0
        model.gate.set()
        assert (await waiting).json()["results"][0]["degraded"] == []
    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert int(refused.headers["Retry-After"]) >= 1


@pytest.mark.anyio
async def test_who_asks_for_it_gets_the_first_pass_where_others_are_refused() -> None:
    options = {"on_overload": "first_pass"}
    entry = lattice_entry(random_lattice(0))
    async with stuck(max_queued_requests=1) as (client, app, model):
        waiting = asyncio.create_task(client.post("/v1/rescore", json=request()))
        while not count(app, "rescore_queue_requests", model="tiny"):
            await asyncio.sleep(0)
        listed = await client.post(
            "/v1/rescore", json=request(options={**options, "on_deadline": "error"})
        )
        found = await client.post(LATTICE, json={"lattices": [entry], "options": options})
        shed = {"model": "tiny", "reason": "queue_full"}
        assert count(app, "rescore_shed_total", **shed) == 0.0  # both are answered
        assert count(app, "rescore_utterances_total", model="tiny", outcome="degraded") == 2.0
        model.gate.set()
        await waiting
    for response in (listed, found):
        assert response.status_code == 200
        (result,) = response.json()["results"]
        assert result["degraded"] == ["overloaded"]
        assert result["hypotheses"][0]["components"]["lm"] == {"tiny": None}


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/rescore", "/v1/score"])
async def test_a_client_that_hangs_up_leaves_the_queue(path: str) -> None:
    body = request() if path == "/v1/rescore" else {"texts": ["the cat"]}
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])
    sent: list[Message] = []

    async def receive() -> Message:
        for message in messages:
            return message
        while not count(app, "rescore_queue_requests", model="tiny"):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async with stuck() as (_, app, model):
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
        scope["headers"] = [(b"content-type", b"application/json")]
        await app(scope, receive, send)
        assert count(app, "rescore_queue_requests", model="tiny") == 0.0
        route = {"route": path, "model": "other", "outcome": "canceled"}
        assert count(app, "rescore_requests_total", **route) == 1.0
    assert sent[0]["status"] == 499
    assert model.batch_sizes == [1]


def test_a_pass_that_hangs_shows_though_nobody_waits_for_it() -> None:
    metrics, model = Metrics(), DoublingModel()
    engine = Scheduler(limits=QueueLimits(10, 9, 99), metrics=metrics, clock=model.clock)

    def gauges() -> list[float]:
        names = "rescore_queue_age_seconds", "rescore_pass_overdue_seconds"
        return [sample(metrics, name) for name in names]

    seen = []

    def hang() -> None:
        seen.append(gauges())
        model.clock.now_s += 60.0
        seen.append(gauges())

    model.during[1] = hang
    engine.submit([job(model, 1)])
    run(engine)
    assert seen == [[0.0, 0.0], [0.0, pytest.approx(60.0, abs=0.1)]]
    assert gauges() == [0.0, 0.0]


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_that_died_is_neither_ready_nor_live() -> None:
    class Dying(TableModel):
        def extend(self, *_: Any) -> list[NDArray[np.float32]]:
            raise SystemExit

    async with running(fake_loaded(model=Dying())) as (client, _):
        assert (await client.get("/health/live")).status_code == 200
        answers = [await client.post("/v1/rescore", json=request()) for _ in range(2)]
        probes = [await client.get(f"/health/{probe}") for probe in ("live", "ready")]
    for response in (*answers, *probes):
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")


@pytest.mark.anyio
async def test_the_limits_and_the_document_tell_of_deadlines_and_of_the_queue() -> None:
    async with running(default_deadline_ms=500.0, max_queued_requests=7, budget_tokens=100) as (
        client,
        _,
    ):
        limits = (await client.get("/v1/limits")).json()
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert (limits["default_deadline_ms"], limits["deadline_ms"]) == (500.0, 30_000.0)
    assert (limits["queued_requests"], limits["queued_tokens"]) == (7, 1_600)
    for path in ("/v1/rescore", LATTICE, "/v1/score"):
        for status in ("429", "504"):
            documented = paths[path]["post"]["responses"][status]
            assert documented["headers"]["Retry-After"]["schema"] == {"type": "integer"}
            assert list(documented["content"]) == ["application/problem+json"]
