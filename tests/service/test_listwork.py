"""Where the steps of a list are done: on the event loop, or on threads that have room."""

from __future__ import annotations

import threading

import pytest

from quantized_lm.tokenizer import Tokenizer
from service.listwork import INLINE_CHARS, run_step
from service.metrics import Metrics
from service.workers import WorkerLimits, Workers
from tests.service.serving import request, running, utterance

pytestmark = pytest.mark.anyio


async def test_only_the_work_of_a_long_request_leaves_the_event_loop() -> None:
    here = threading.get_ident()
    workers = Workers("test", 1, WorkerLimits(1, 1), Metrics())
    assert await run_step(workers, INLINE_CHARS, threading.get_ident) == here
    assert await run_step(workers, INLINE_CHARS + 1, threading.get_ident) != here
    workers.stop()


async def test_a_long_context_leaves_the_event_loop_too(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def context_ids(*_: object, room: int) -> list[int]:  # noqa: ARG001 - it is called by name
        threads.append(threading.get_ident())
        return []

    monkeypatch.setattr(Tokenizer, "context_ids", context_ids)
    context = {"context": {"text": ["the cat " * 1000] * 4}}
    async with running() as (client, _):
        for body in (request(utterance("a cat") | context), request(utterance("a cat"))):
            assert (await client.post("/v1/rescore", json=body)).status_code == 200
        for body in ({"texts": ["a cat"]} | context, {"texts": ["a cat"]}):
            assert (await client.post("/v1/score", json=body)).status_code == 200
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [False, True, False, True]


async def test_long_lists_that_find_no_place_are_refused_unless_they_fall_back() -> None:
    long = [utterance(*["the cat sat on a mat"] * 1000)] * 2
    first_pass = {"options": {"on_overload": "first_pass"}}
    texts = {"texts": ["the cat sat on a mat " * 2] * 1000}
    async with running() as (client, app):
        lists = app.state.core.threads.lists
        with lists.place(lists._limits.max_bytes):
            refused = await client.post("/v1/rescore", json=request(*long))
            scored = await client.post("/v1/score", json=texts)
            answered = await client.post("/v1/rescore", json=request(*long, **first_pass))
            short = await client.post("/v1/rescore", json=request())
        later = await client.post("/v1/rescore", json=request(*long))
    for response in (refused, scored):
        assert (response.status_code, response.json()["code"]) == (429, "overloaded")
    assert [one.status_code for one in (answered, short, later)] == [200] * 3
