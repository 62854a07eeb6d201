"""Every code, as RFC 9457 problem details."""

from __future__ import annotations

import gzip
import json
import threading
import tracemalloc
from typing import Any

import httpx
import pytest
from starlette.types import Message

from quantized_lm.errors import InputError, SecondpassError
from service.core import Core
from service.errors import (
    ERRORS,
    HTTP_ERRORS,
    MAX_LISTED_ERRORS,
    PROBLEM_JSON,
    kind_of,
    relocated,
)
from tests.fakes import fake_loaded
from tests.service.serving import Json, request, running, utterance

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}


def check_problem(response: httpx.Response, status: int, code: str) -> Json:
    """The body, once it is a whole and consistent problem."""
    problem: Json = response.json()
    assert response.status_code == status, problem
    assert response.headers["Content-Type"] == PROBLEM_JSON
    assert set(problem) == {
        *("type", "title", "status", "detail", "instance", "code", "request_id", "errors"),
    }
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:secondpass:error:{code}"
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/utterances"),
        (request(typo=1), "/typo"),
        ({"utterances": []}, "/utterances"),
        ({"utterances": [utterance("a")] * 65}, "/utterances"),
        (request(utterance()), "/utterances/0/hypotheses"),
        (request(utterance(*["a"] * 1001)), "/utterances/0/hypotheses"),
        (request({"hypotheses": [{"am_score": 1.0}]}), "/utterances/0/hypotheses/0/text"),
        (
            request({"hypotheses": [{"text": "a", "am_score": "-1"}]}),
            "/utterances/0/hypotheses/0/am_score",
        ),
        (
            request({"hypotheses": [{"text": "a", "am_score": True}]}),
            "/utterances/0/hypotheses/0/am_score",
        ),
        (
            request({"hypotheses": [{"text": "a", "am_score": 1e13}]}),
            "/utterances/0/hypotheses/0/am_score",
        ),
        (request({"hypotheses": [{"text": 7}]}), "/utterances/0/hypotheses/0/text"),
        (request({"hypotheses": [{"text": "a" * 16_385}]}), "/utterances/0/hypotheses/0/text"),
        (request(weights={"lm_scal": 0.5}), "/weights/lm_scal"),
        (request(weights={"length_norm": "lines"}), "/weights/length_norm"),
        (request(weights={"extra": {"a/b~": "x"}}), "/weights/extra/a~1b~0"),
        (request(weights={"parameters": {"weight": 0.5}}), "/weights"),
        (request(options={"n_best": 0}), "/options/n_best"),
        (request(options={"on_deadline": "partial"}), "/options/on_deadline"),
        (request(options={"on_overload": "partial"}), "/options/on_overload"),
        (request(options={"deadline_ms": 0.0}), "/options/deadline_ms"),
        (request(options={"deadline_ms": 30_001.0}), "/options/deadline_ms"),
        (request(options={"oov": "neutral"}), "/options/oov"),
        (request(lms=[]), "/lms"),
        (request(lms=[{"model": "tiny"}], model="tiny"), ""),
        (request(lms=[{"model": "tiny"}] * 2), ""),
        (request(weights={"mode": "linear"}), "/weights/graph_scale"),
        (
            request(weights={"mode": "linear", "graph_scale": 1.0, "lm_scale": 2.0}),
            "/weights/lm_scale",
        ),
        ([], ""),
        (None, ""),
    ],
)
async def test_a_body_that_does_not_fit_the_schema_is_422_with_a_pointer(
    body: Any, pointer: str
) -> None:
    async with running() as (client, _):
        response = await client.post("/v1/rescore", content=json.dumps(body), headers=JSON)
    problem = check_problem(response, 422, "invalid_field")
    assert problem["errors"][0]["pointer"] == pointer
    assert problem["errors"][0]["message"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (
            request({"hypotheses": [{"text": "a", "score": -1.0}]}),
            "/utterances/0/hypotheses/0/score: is not known; /docs lists the fields that are",
        ),
        (
            request({"hypotheses": [{"text": "a", "graph_score": -1.0, "lm_score": -1.0}]}),
            "/utterances/0/hypotheses/0/lm_score: is another name of graph_score; give one of them",
        ),
        (request({"hypotheses": [], "context": ["a"]}), "/utterances/0/context: need an object"),
        (request({"hypotheses": ["a"]}), "/utterances/0/hypotheses/0: need an object"),
        ([], "body: need an object"),
    ],
)
async def test_a_fault_is_told_without_a_class_and_with_a_remedy(body: Any, detail: str) -> None:
    async with running() as (client, _):
        response = await client.post("/v1/rescore", content=json.dumps(body), headers=JSON)
    problem = check_problem(response, 422, "invalid_field")
    found = [f"{item['pointer'] or 'body'}: {item['message']}" for item in problem["errors"]]
    assert detail in found


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_number_that_is_not_finite_is_422(number: str) -> None:
    content = json.dumps(request({"hypotheses": [{"text": "a", "am_score": 0.125}]}))
    content = content.replace("0.125", number)
    async with running() as (client, _):
        response = await client.post("/v1/rescore", content=content, headers=JSON)
    problem = check_problem(response, 422, "non_finite")
    assert problem["errors"][0]["pointer"] == "/utterances/0/hypotheses/0/am_score"


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"]
)
async def test_a_body_that_is_not_json_is_400(content: bytes) -> None:
    async with running() as (client, _):
        response = await client.post("/v1/rescore", content=content, headers=JSON)
    check_problem(response, 400, "malformed_json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
async def test_json_is_read_in_every_encoding_that_python_reads(encoding: str) -> None:
    content = json.dumps(request(utterance("caf\u00e9")), ensure_ascii=False).encode(encoding)
    async with running() as (client, _):
        response = await client.post("/v1/rescore", content=content, headers=JSON)
    assert response.json()["results"][0]["hypotheses"][0]["text"] == "caf\u00e9"


async def test_a_client_that_leaves_before_its_body_came_is_canceled() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async with running() as (_, app):
        scope = {"type": "http", "method": "POST", "path": "/v1/rescore", "query_string": b""}
        scope["headers"] = [(b"content-type", b"application/json")]
        await app(scope, receive, send)
    assert sent[0]["status"] == 499


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
async def test_half_a_surrogate_is_refused_wherever_it_stands(text: str) -> None:
    in_text = request({"hypotheses": [{"text": text, "am_score": 0.0}]})
    in_name = request({"hypotheses": [{"text": "a", "am_score": 0.0, "extra": {text: "x"}}]})
    async with running() as (client, _):
        for body in (in_text, in_name, request(**{text: 1})):
            response = await client.post("/v1/rescore", content=json.dumps(body), headers=JSON)
            check_problem(response, 422, "invalid_field")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "multipart/form-data"},
        JSON | {"Content-Encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_plain_json_is_415(headers: dict[str, str]) -> None:
    async with running() as (client, _):
        for path in ("/v1/rescore", "/v1/score"):
            for content in (json.dumps(request()).encode(), gzip.compress(b"{}")):
                response = await client.post(path, content=content, headers=headers)
                check_problem(response, 415, "unsupported_media_type")


async def test_a_body_above_the_limit_is_413_declared_or_streamed() -> None:
    content = json.dumps(request()).encode()

    async def pieces() -> Any:
        yield content[:50]
        yield content[50:]

    async with running(max_body_bytes=len(content) - 1) as (client, _):
        declared = await client.post("/v1/rescore", content=content, headers=JSON)
        streamed = await client.post("/v1/rescore", content=pieces(), headers=JSON)
    check_problem(declared, 413, "body_too_large")
    check_problem(streamed, 413, "body_too_large")
    async with running(max_body_bytes=len(content)) as (client, _):
        fits = await client.post("/v1/rescore", content=pieces(), headers=JSON)
    assert fits.status_code == 200


async def test_an_unknown_model_is_404_and_the_known_ones_are_named() -> None:
    async with running(fake_loaded("one"), fake_loaded("two")) as (client, _):
        responses = [
            await client.post("/v1/rescore", json=request(model="three")),
            await client.post("/v1/rescore", json=request(lms=[{"model": "three"}])),
            await client.post("/v1/rescore", json=request()),
            await client.post("/v1/score", json={"texts": ["a"], "model": "three"}),
            await client.get("/v1/models/three"),
        ]
    for response in responses:
        assert "one, two" in check_problem(response, 404, "model_not_found")["detail"]


async def test_an_unusable_preset_is_422_and_points_at_itself() -> None:
    async with running() as (client, _):
        body = request(weights={"preset": "htk"})
        unknown = await client.post("/v1/rescore", json=body)
        body = request(weights={"preset": "kaldi", "parameters": {"lambda": 1.0}})
        parameter = await client.post("/v1/rescore", json=body)
    problem = check_problem(unknown, 422, "invalid_preset")
    assert problem["errors"][0]["pointer"] == "/weights/preset"
    problem = check_problem(parameter, 422, "invalid_preset")
    assert problem["errors"][0]["pointer"] == "/weights/parameters/lambda"


async def test_paths_and_methods_that_do_not_exist_are_problems_too() -> None:
    async with running() as (client, _):
        check_problem(await client.get("/v2/rescore"), 404, "not_found")
        wrong = await client.get("/v1/rescore")
    check_problem(wrong, 405, "method_not_allowed")
    assert wrong.headers["Allow"] == "POST"


async def test_while_draining_ready_and_new_work_are_503() -> None:
    async with running() as (client, app):
        core: Core = app.state.core
        core.draining.set()
        ready = await client.get("/health/ready")
        served = await client.post("/v1/rescore", json=request())
        core.engine.stop()
        refused = await client.post("/v1/rescore", json=request())
        core.draining.clear()
        dead = await client.get("/health/ready")
    check_problem(ready, 503, "draining")
    assert served.status_code == 200  # until the port closes, what still comes is served
    check_problem(refused, 503, "draining")
    assert refused.headers["Retry-After"] == "1"
    check_problem(dead, 503, "not_ready")


async def test_only_the_first_faults_of_many_are_listed() -> None:
    body = request({"hypotheses": [{"text": 1}] * 500})
    async with running() as (client, _):
        response = await client.post("/v1/rescore", json=body)
    assert len(response.json()["errors"]) == MAX_LISTED_ERRORS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("path", ["/v1/rescore", "/v1/score", "/v1/rescore/lattice"])
async def test_more_faults_than_can_be_told_are_one_and_take_no_memory(
    path: str, encoding: str
) -> None:
    body = json.dumps({f"f{number}": 0 for number in range(20_000)})
    if path.endswith("lattice"):
        encoding = "utf-8"
    async with running() as (client, _):
        tracemalloc.start()
        response = await client.post(path, content=body.encode(encoding), headers=JSON)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    (fault,) = check_problem(response, 422, "invalid_field")["errors"]
    assert fault["pointer"] == ""
    assert "2000" in fault["message"]  # and those that are missing
    assert peak_bytes < 8 << 20  # 30 MB if each were told


def test_every_exception_of_the_library_has_a_status() -> None:
    for kind in (InputError, SecondpassError, threading.BrokenBarrierError):
        assert kind_of(kind("x")) in ERRORS.values()


def test_codes_are_unique() -> None:
    kinds = {*ERRORS.values(), *HTTP_ERRORS.values()}
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_a_relocated_error_keeps_its_class() -> None:
    class OwnError(InputError):
        pass

    moved = relocated(OwnError("x", pointer="/b"), "/a")
    assert isinstance(moved, OwnError)
    assert (str(moved), moved.pointer) == ("x", "/a/b")
