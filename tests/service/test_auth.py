"""Who may do what, and that nobody learns a key or a text from the logs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route
from starlette.types import Message

from service.api_keys import ApiKey, KeyFileError, hash_of, required_scope, write_keys
from service.app import create_app
from service.auth import KeyRing
from service.logs import logging_to
from service.settings import Settings
from tests.fakes import TableModel, fake_loaded
from tests.service.serving import request, running
from tests.service.test_errors import check_problem

pytestmark = pytest.mark.anyio
SCORE, ADMIN, BOTH = "sp_score-SECRET", "sp_admin-SECRET", "sp_both-SECRET"
OPEN = ("/health/live", "/health/ready", "/health/startup", "/metrics", "/docs", "/openapi.json")
SCORED = ("/v1/rescore", "/v1/score", "/v1/rescore/lattice")


def key(name: str, secret: str, *scopes: str, **limits: float) -> ApiKey:
    """A key as a file has it."""
    fields = {"name": name, "scopes": scopes, "sha256": hash_of(secret), "created": "2026-11-21"}
    return ApiKey.model_validate(fields | limits)


def bearing(secret: str) -> dict[str, str]:
    """Headers with a key."""
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three keys: one per scope, and one of both."""
    path = tmp_path / "keys.json"
    write_keys(
        path,
        [
            key("asr", SCORE, "score"),
            key("ops", ADMIN, "admin"),
            key("all", BOTH, "score", "admin"),
        ],
    )
    return path


def failures(app: Any) -> Mapping[str, float]:
    """rescore_auth_failures_total by reason."""
    return {
        sample.labels["reason"]: sample.value
        for sample in next(iter(app.state.core.metrics.auth_failures.collect())).samples
        if sample.name.endswith("_total")
    }


async def test_without_a_key_only_what_is_everyones_is_answered(file: Path) -> None:
    async with running(api_keys_file=file) as (client, app):
        for path in OPEN:
            assert (await client.get(path)).status_code == 200, path
        for path in SCORED:
            response = await client.post(path, json=request())
            check_problem(response, 401, "unauthenticated")
            assert response.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/v1/models", "/v1/limits", "/v1/nothing", "/v1/admin/models"):
            check_problem(await client.get(path), 401, "unauthenticated")
        assert failures(app) == {"missing": 7.0}


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        ("Bearer sp_wrong", "unknown"),
        ("Bearer ", "unknown"),
        ("Bearer", "unknown"),
        (f"Bearer {hash_of(SCORE)}", "unknown"),
        (f"Basic {SCORE}", "malformed"),
        (SCORE, "malformed"),
        ("", "malformed"),
        ("Bearer caf\u00e9", "unknown"),
    ],
)
async def test_a_wrong_key_is_401(file: Path, authorization: str, reason: str) -> None:
    async with running(api_keys_file=file) as (client, app):
        headers = {b"Authorization": authorization.encode("latin-1")}
        response = await client.post("/v1/rescore", json=request(), headers=headers)
        problem = check_problem(response, 401, "unauthenticated")
        assert failures(app) == {reason: 1.0}
    assert "sp_" not in json.dumps(problem)


async def test_refused_requests_are_counted_by_the_route_they_asked_for(file: Path) -> None:
    async with running(api_keys_file=file) as (client, app):
        await client.post("/v1/rescore", json=request())
        await client.get("/v1/models/tiny")
        await client.get("/v1/admin/models", headers=bearing(SCORE))
        await client.get("/v1/nothing")
        counted = {
            sample.labels["route"]: sample.value
            for sample in next(iter(app.state.core.metrics.requests.collect())).samples
            if sample.name.endswith("_total")
        }
    routes = ("/v1/rescore", "/v1/models/{model_id}", "/v1/admin/models", "unknown")
    assert counted == dict.fromkeys(routes, 1.0)


async def test_the_documentation_says_what_needs_a_key(file: Path) -> None:
    for keys, scored in ((None, None), (file, [{"api_key": []}])):
        async with running(api_keys_file=keys) as (client, _):
            document = (await client.get("/openapi.json")).json()
        assert document["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
        found = {
            path: next(iter(operations.values())).get("security")
            for path, operations in document["paths"].items()
        }
        assert found["/v1/rescore"] == found["/v1/models"] == scored
        assert found["/v1/admin/models"] == [{"api_key": []}]
        assert found["/health/live"] is None


async def test_a_key_is_good_for_its_scopes(file: Path) -> None:
    async with running(api_keys_file=file) as (client, app):
        for secret, statuses in ((SCORE, (200, 403)), (ADMIN, (403, 200)), (BOTH, (200, 200))):
            scored = await client.post("/v1/rescore", json=request(), headers=bearing(secret))
            listed = await client.get("/v1/admin/models", headers=bearing(secret))
            assert (scored.status_code, listed.status_code) == statuses
        check_problem(
            await client.get("/v1/admin/models", headers=bearing(SCORE)), 403, "forbidden"
        )
        assert failures(app) == {"scope": 3.0}
        lower = {"Authorization": f"bearer  {SCORE} "}
        assert (await client.get("/v1/models", headers=lower)).status_code == 200


async def test_the_body_of_a_refused_request_is_never_read(file: Path) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        pytest.fail("the body was asked for")

    async def send(message: Message) -> None:
        sent.append(message)

    async with running(api_keys_file=file) as (_, app):
        scope = {"type": "http", "method": "POST", "path": "/v1/rescore", "query_string": b""}
        await app({**scope, "headers": [(b"authorization", b"Bearer x")]}, receive, send)
    assert sent[0]["status"] == 401


async def test_without_a_file_scoring_is_open_and_admin_says_what_to_do() -> None:
    async with running() as (client, app):
        assert (await client.post("/v1/rescore", json=request())).status_code == 200
        headers = bearing(ADMIN)
        for response in (
            await client.get("/v1/admin/models"),
            await client.post("/v1/admin/drain", headers=headers),
        ):
            problem = check_problem(response, 403, "forbidden")
            assert "SECONDPASS_API_KEYS_FILE" in problem["detail"]
        assert (await client.get("/health/ready")).status_code == 200
        assert failures(app) == {"no_keys": 2.0}


def test_every_route_but_a_few_needs_a_scope() -> None:
    paths = {route.path for route in create_app(Settings()).routes if isinstance(route, Route)}
    is_open = {path for path in paths if required_scope(path) is None}
    assert not {path for path in is_open if path.startswith("/v")}
    assert {path for path in paths if required_scope(path) == "admin"} == {
        path for path in paths if "admin" in path
    }


async def test_a_root_path_does_not_open_what_needs_a_key(file: Path) -> None:
    async with running(api_keys_file=file) as (_, app):
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/asr/v1/models", "root_path": "/asr"}
        await app({**scope, "query_string": b"", "headers": []}, receive, send)
    assert sent[0]["status"] == 401


def test_a_reload_takes_new_keys_forgets_old_ones_and_keeps_what_is_owed(file: Path) -> None:
    limited = key("asr", SCORE, "score", requests_per_s=1.0)
    write_keys(file, [limited, key("ops", ADMIN, "admin")])
    ring = KeyRing(file, clock=lambda: 0.0)
    caller = ring.find(SCORE)
    assert caller is not None
    caller.take_request()
    write_keys(file, [limited, key("new", BOTH, "score")])
    ring.reload()
    assert ring.find(SCORE) is caller
    assert ring.find(ADMIN) is None
    assert ring.find(BOTH) is not None
    write_keys(file, [limited.model_copy(update={"requests_per_s": 5.0})])
    ring.reload()
    assert ring.find(SCORE) is not caller


def test_a_rotated_key_takes_the_place_of_the_old_one(file: Path) -> None:
    ring = KeyRing(file)
    write_keys(file, [key("asr", "sp_rotated", "admin")])
    ring.reload()
    rotated = ring.find("sp_rotated")
    assert rotated is not None
    assert rotated.key.scopes == ("admin",)
    assert ring.find(SCORE) is None


def test_a_broken_file_keeps_the_old_keys(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = KeyRing(file)
    file.write_text("{", encoding="utf-8")
    ring.reload()
    assert ring.find(SCORE) is not None
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "kept as they were" in record.getMessage()


def test_a_broken_file_at_startup_is_refused(file: Path) -> None:
    file.write_text("{", encoding="utf-8")
    with pytest.raises(KeyFileError):
        create_app(Settings(api_keys_file=file))


def test_a_file_that_others_may_read_is_warned_of(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    KeyRing(file)
    assert not caplog.records
    file.chmod(0o644)
    KeyRing(file)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "chmod o-r" in record.getMessage()


CANARY = "zanzibarcanary"


def bodies() -> Iterator[tuple[str, Any]]:
    """Requests that are answered, and refused in every way, all about one word."""
    text = f"the {CANARY} sat"
    good = request({"hypotheses": [{"text": text, "am_score": -1.0}]})
    yield "/v1/rescore", good
    yield "/v1/score", {"texts": [text], "context": {"text": [text]}}
    yield "/v1/rescore", request({"hypotheses": [{"text": text, "am_score": CANARY}]})
    yield "/v1/rescore", request({"hypotheses": [{"text": [text], "am_score": 1.0}]})
    yield "/v1/rescore", {**good, "options": {"oov": "error"}}
    yield "/v1/rescore", {**good, "model": CANARY}
    yield "/v1/rescore", {**good, CANARY: 1}
    yield "/v1/rescore", {**good, "weights": {"preset": CANARY}}
    yield "/v1/rescore", request({"hypotheses": [{"text": text + " a" * 99, "am_score": 0.0}]})
    yield "/v1/score", {"texts": [text, CANARY * 5000]}
    yield "/v1/rescore/lattice", {"lattices": [{"format": "htk", "text": f"N=1 L=1\nW={CANARY}"}]}
    yield "/v1/rescore/lattice", {"lattices": [{"format": CANARY, "text": text}]}


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_neither_keys_nor_texts_are_logged_or_measured(file: Path, log_format: str) -> None:
    chosen: dict[str, Any] = {"log_format": log_format, "log_level": "debug", "access_log": True}
    stream = io.StringIO()
    with logging_to(stream, Settings(**chosen), pytest.fail):
        async with running(api_keys_file=file, **chosen) as (client, _):
            for secret in (SCORE, ADMIN, "sp_wrong-SECRET"):
                for path, body in bodies():
                    await client.post(path, json=body, headers=bearing(secret))
            await client.post("/v1/rescore", content=f'{{"{CANARY}', headers=bearing(SCORE))
            await client.get(f"/v1/models/{CANARY}", headers=bearing(SCORE))
            await client.get(f"/v1/{CANARY}?{CANARY}={CANARY}", headers=bearing(SCORE))
            metrics = (await client.get("/metrics")).text
    assert stream.getvalue().count("/v1/rescore") > 10
    written = stream.getvalue() + metrics
    assert CANARY not in written
    assert "SECRET" not in written


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("error", [KeyError(CANARY), RuntimeError(f"cannot score {CANARY}")])
async def test_a_failure_is_logged_with_its_stack_and_without_the_text(
    error: Exception, log_format: str
) -> None:
    stream = io.StringIO()
    body = request({"hypotheses": [{"text": CANARY, "am_score": 0.0}]})
    with logging_to(stream, Settings(log_format=log_format), pytest.fail):  # type: ignore[arg-type]
        async with running(fake_loaded(model=TableModel(error=error))) as (client, _):
            response = await client.post("/v1/rescore", json=body)
            metrics = (await client.get("/metrics")).text
    check_problem(response, 500, "internal")
    logged = stream.getvalue()
    assert CANARY not in logged + metrics + response.text
    assert type(error).__name__ in logged
    assert "fakes.py" in logged
    assert response.headers["X-Request-ID"] in logged


async def test_what_fails_is_answered_and_not_passed_on_to_the_server() -> None:
    async with running(fake_loaded(model=TableModel(error=RuntimeError("broken")))) as (_, app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post("/v1/rescore", json=request())
    check_problem(response, 500, "internal")
