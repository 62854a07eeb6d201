"""Lattices beside other work: shared passes, deadlines, cancellation, memory."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.types import Message

from quantized_lm.lattice.formats import LATTICE_FORMATS
from quantized_lm.lattice.lattice import Lattice, Ragged
from service import pass_plan
from service.admission import QueueLimits
from service.deadlines import Arrival
from service.lattice_rescoring import LatticeRescorer
from service.lattice_schemas import LatticeInput, LatticeOptions
from service.latticework import AskedLattices, UnreadLattices, source_of, unpacked
from service.metrics import Metrics
from service.registry import Registry
from service.routes import lattice as lattice_route
from service.scheduler import Scheduler
from service.schemas import LmRequest
from service.settings import Settings
from service.workers import WorkerLimits, start_threads
from tests.fakes import WORDS, TableModel, TableState, fake_loaded
from tests.quantized_lm.lattice.random_lattices import random_lattice
from tests.service.serving import Json, lattice_entry, request, running, utterance

PATH = "/v1/rescore/lattice"
THOROUGH: Json = {"order": None, "patience": None, "seeds": 1, "max_lm_steps": 100}


def confusions(length: int, width: int) -> Lattice:
    """`width` words to choose from at each of `length` places, all alike but for the LM."""
    symbols = sorted({a + b for a in WORDS.split() for b in WORDS.split()})[:width]
    symbols += [f"{word}s" for word in symbols]
    count = length * width
    word = 1 + np.arange(count, dtype=np.int32) % len(symbols)
    return Lattice(
        src=np.repeat(np.arange(length, dtype=np.int32), width),
        dst=np.repeat(np.arange(1, length + 1, dtype=np.int32), width),
        words=Ragged(np.arange(count + 1, dtype=np.int32), word),
        am=np.random.default_rng(0).normal(size=count),
        graph=np.zeros(count),
        symbols=dict(enumerate(symbols, start=1)),
    )


@dataclass
class PausingModel(TableModel):
    """Closes its own gate before one pass.

    Attributes:
        pause_at: number of that pass, from 0.
        paused: set once that pass stands before the gate.
    """

    pause_at: int = 0
    paused: threading.Event = field(default_factory=threading.Event)

    def extend(
        self,
        states: Sequence[TableState],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """As LanguageModel.extend."""
        if len(self.batch_sizes) == self.pause_at:
            self.gate.clear()
            self.paused.set()
        return super().extend(states, parents, tokens)


@pytest.mark.anyio
async def test_a_list_shares_a_pass_with_a_lattice_and_does_not_wait_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # However long the first pass took on a busy machine, the list joins the second.
    monkeypatch.setattr(pass_plan, "LEAD_TIMES", math.inf)
    model = PausingModel(pause_at=2)
    model.gate.clear()
    async with running(fake_loaded(model=model)) as (client, app):
        body = {"lattices": [lattice_entry(confusions(6, 6))], "options": THOROUGH}
        lattice = asyncio.create_task(client.post(PATH, json=body))
        while not model.entered.is_set():
            await asyncio.sleep(0)
        ranked = asyncio.create_task(client.post("/v1/rescore", json=request()))
        queue = app.state.core.metrics.queue_requests.labels("tiny")
        while queue._value.get() < 1:
            await asyncio.sleep(0)
        model.gate.set()
        assert (await ranked).status_code == 200
        while not model.paused.is_set():  # only then is there a gate to open
            await asyncio.sleep(0)
        assert not lattice.done()  # the third pass has not ended
        model.gate.set()
        reply = (await lattice).json()
    assert model.batch_sizes[:3] == [1, 2, 1]
    assert reply["usage"]["waves"] == len(model.batch_sizes) > 3


@pytest.mark.anyio
async def test_a_lattice_beside_lists_gets_what_it_gets_alone() -> None:
    body = {"lattices": [lattice_entry(random_lattice(seed)) for seed in range(8)]}
    async with running() as (client, _):
        alone = [
            (await client.post(PATH, json={"lattices": [one]})).json()["results"][0]
            for one in body["lattices"]
        ]
        calls = [client.post("/v1/rescore", json=request()) for _ in range(8)]
        together, *_ = await asyncio.gather(client.post(PATH, json=body), *calls)
    assert together.json()["results"] == alone


@dataclass
class TimedModel(TableModel):
    """Every pass takes 0.1 s of a clock of its own."""

    now_s: float = 0.0

    def extend(
        self,
        states: Sequence[TableState],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """As LanguageModel.extend."""
        self.now_s += 0.1
        return super().extend(states, parents, tokens)


@pytest.mark.anyio
@pytest.mark.parametrize(("late_s", "waves"), [(0.0, 3), (0.15, 1), (0.25, 0), (99.0, 0)])
async def test_at_its_deadline_a_lattice_is_answered_with_what_is_known(
    late_s: float, waves: int
) -> None:
    model = TimedModel(now_s=late_s)
    loaded, metrics = fake_loaded(model=model), Metrics()

    def clock() -> float:
        return model.now_s

    limits = QueueLimits(budget_tokens=9_999, max_requests=9, max_tokens=99_999)
    engine = Scheduler(limits=limits, metrics=metrics, clock=clock)
    most = WorkerLimits(9, 9)
    threads = start_threads(most, most, metrics, lambda: -1e3)  # which read at once
    rescorer = LatticeRescorer(Registry([loaded]), engine, metrics, Settings(), threads, clock)
    sent = LatticeInput(**lattice_entry(confusions(6, 6)))
    options = LatticeOptions(**THOROUGH, deadline_ms=250.0, return_lattice=True)
    asked = AskedLattices(LmRequest(), options, [source_of(0, sent)])
    engine.start()
    reply = await rescorer.rescore(
        UnreadLattices(lambda: asked, 1, may_ask=False), "id", Arrival(0.0)
    )
    engine.stop()
    threads.stop()
    (result,) = reply["results"]
    assert isinstance(result, dict)
    assert (result["degraded"], result["exact"]) == (["deadline"], False)
    assert (reply["usage"]["waves"], len(result["hypotheses"])) == (waves, 1)
    assert (result["hypotheses"][0]["components"]["lm"]["tiny"] is None) == (waves == 0)


class SlowReading:
    """Stands for `unpacked`, and takes until its gate is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.bodies: list[bytes] = []

    def __call__(self, content: bytes, max_bytes: int) -> bytes:
        self.bodies.append(content)
        self.gate.wait(30.0)
        return unpacked(content, max_bytes)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowReading]:
    slow = SlowReading()
    monkeypatch.setattr(lattice_route, "unpacked", slow)
    yield slow
    slow.gate.set()


@pytest.mark.anyio
async def test_lattices_that_take_long_to_read_are_late_and_hold_nobody_else(
    reading: SlowReading,
) -> None:
    body = json.dumps({"lattices": [lattice_entry(random_lattice(0))]})
    headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": "1000"}
    long = utterance(*["the cat sat on a mat and saw an old dog"] * 1000)
    async with running() as (client, _):
        waiting = [
            asyncio.create_task(client.post(PATH, content=body, headers=headers)) for _ in range(40)
        ]
        late = [await one for one in waiting]
        listed = await asyncio.wait_for(client.post("/v1/rescore", json=request(long)), 10.0)
        reading.gate.set()
        found = await client.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert {(one.status_code, one.json()["code"]) for one in late} == {(504, "deadline_exceeded")}
    assert (listed.status_code, found.status_code) == (200, 200)
    assert len(reading.bodies) == 2 + 1  # what was late before its turn was not begun


@pytest.mark.anyio
async def test_more_lattices_than_may_be_read_at_once_are_refused(reading: SlowReading) -> None:
    entry = lattice_entry(random_lattice(0))
    body = {"lattices": [entry], "options": {"deadline_ms": 30_000.0}}
    size_bytes = len(json.dumps(body))
    async with running(max_lattice_body_bytes=3 * size_bytes) as (client, app):
        waiting = [asyncio.create_task(client.post(PATH, json=body)) for _ in range(5)]
        refused = [one.result() for one in (await asyncio.wait(waiting, timeout=1.0))[0]]
        reading.gate.set()
        replies = [await one for one in waiting]
        shed = {"model": "other", "reason": "queue_full"}
        value = app.state.core.metrics.registry.get_sample_value
        assert value("rescore_shed_total", shed) == len(refused)
    assert sorted(one.status_code for one in replies) == [200, 200, 200, 429, 429]
    assert [one.headers["Retry-After"] for one in refused] == ["1", "1"]


@pytest.mark.anyio
async def test_a_client_that_hangs_up_while_its_lattice_is_read_is_answered_at_once(
    reading: SlowReading,
) -> None:
    sent: list[Message] = []
    body = {"lattices": [lattice_entry(random_lattice(0))]}
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    async with running() as (_, app):
        scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b""}
        scope["headers"] = [(b"content-type", b"application/json")]
        await asyncio.wait_for(app(scope, receive, send), 10.0)
    assert sent[0]["status"] == 499
    assert len(reading.bodies) == 1


@pytest.mark.anyio
async def test_a_lattice_whose_client_left_is_dropped_between_two_waves() -> None:
    model = PausingModel(pause_at=1)
    async with running(fake_loaded(model=model)) as (client, _):
        body = {"lattices": [lattice_entry(confusions(6, 6))], "options": THOROUGH}
        lattice = asyncio.create_task(client.post(PATH, json=body))
        while not model.paused.is_set():
            await asyncio.sleep(0)
        lattice.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lattice
        model.gate.set()
        assert (await client.post("/v1/rescore", json=request())).status_code == 200
    assert model.batch_sizes == [1, 1, 1]


@pytest.mark.anyio
async def test_a_client_that_hangs_up_ends_its_search_and_is_counted() -> None:
    model = PausingModel(pause_at=1)
    sent: list[Message] = []
    body = {"lattices": [lattice_entry(confusions(6, 6))], "options": THOROUGH}
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> Message:
        for message in messages:
            return message
        while not model.paused.is_set():
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async with running(fake_loaded(model=model)) as (client, app):
        scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b""}
        scope["headers"] = [(b"content-type", b"application/json")]
        await app(scope, receive, send)
        model.gate.set()
        assert (await client.post("/v1/rescore", json=request())).status_code == 200
        text = (await client.get("/metrics")).text
    assert sent[0]["status"] == 499
    assert f'outcome="canceled",route="{PATH}"}} 1.0' in text
    assert model.batch_sizes == [1, 1, 1]


@pytest.mark.real_clock
@pytest.mark.anyio
async def test_a_lattice_of_most_arcs_is_answered_within_a_second_at_its_deadline() -> None:
    content = LATTICE_FORMATS["k2-safetensors"].write([confusions(50, 1998)])
    headers = {"Content-Type": "application/vnd.secondpass.k2+safetensors"}
    query: dict[str, str | int] = {
        "deadline_ms": 200,
        "order": "null",
        "patience": "null",
        "max_lm_steps": 100_000,
    }
    async with running() as (client, _):
        began_s = time.perf_counter()
        response = await client.post(PATH, content=content, params=query, headers=headers)
        took_s = time.perf_counter() - began_s
    assert took_s < 1.0
    if response.json().get("code") == "deadline_exceeded":
        return  # a slow machine has not even read it by then
    (result,) = response.json()["results"]
    assert {"deadline", "max_arcs"} & set(
        result["degraded"]
    )  # a fast machine meets the other first
    assert result["hypotheses"]
    assert response.json()["usage"]["arcs"] > 99_000


@pytest.mark.anyio
async def test_memory_is_given_back_after_every_request() -> None:
    body = {
        "lattices": [lattice_entry(confusions(20, 20))],
        "options": {**THOROUGH, "return_lattice": True, "return_words": True},
    }
    async with running() as (client, _):

        async def ask(times: int) -> int:
            for _ in range(times):
                assert (await client.post(PATH, json=body)).status_code == 200
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        await ask(3)
        before = await ask(1)
        after = await ask(10)
        tracemalloc.stop()
    assert after - before < 200_000
