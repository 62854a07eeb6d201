"""What a key may have is taken from it, whatever becomes of its requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.api_keys import write_keys
from tests.fakes import TableModel, fake_loaded
from tests.service.serving import request, running
from tests.service.test_auth import bearing, key
from tests.service.test_errors import check_problem

pytestmark = pytest.mark.anyio


async def test_requests_beyond_the_quota_are_429_until_time_has_passed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write_keys(file, [key("a", "sp_a", "score", requests_per_s=2.0), key("b", "sp_b", "score")])
    async with running(api_keys_file=file) as (client, app):
        now_s = 0.0
        app.state.keys._clock = lambda: now_s
        app.state.keys._callers = {}
        app.state.keys.reload()

        async def ask(secret: str) -> Any:
            return await client.get("/v1/models", headers=bearing(secret))

        assert [(await ask("sp_a")).status_code for _ in range(3)] == [200, 200, 429]
        refused = await ask("sp_a")
        assert "2 requests per second" in check_problem(refused, 429, "quota")["detail"]
        assert refused.headers["Retry-After"] == "1"
        assert (await ask("sp_b")).status_code == 200
        now_s = 0.6
        assert (await ask("sp_a")).status_code == 200
        shed = {"model": "other", "reason": "quota"}
        value = app.state.core.metrics.registry.get_sample_value
        assert value("rescore_shed_total", shed) == 2.0


async def test_the_engines_work_is_charged_once_it_is_known(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write_keys(file, [key("a", "sp_a", "score", tree_nodes_per_s=1.0)])
    async with running(api_keys_file=file) as (client, app):
        now_s = 0.0
        app.state.keys._clock = lambda: now_s
        app.state.keys._callers = {}
        app.state.keys.reload()
        headers = bearing("sp_a")
        first = await client.post("/v1/rescore", json=request(), headers=headers)
        tree_nodes = first.json()["usage"]["tree_nodes"]
        assert tree_nodes > 2
        second = await client.post("/v1/rescore", json=request(), headers=headers)
        problem = check_problem(second, 429, "quota")
        assert "tree nodes" in problem["detail"]
        assert int(second.headers["Retry-After"]) == tree_nodes - 1
        now_s = tree_nodes - 0.5
        third = await client.post("/v1/rescore", json=request(), headers=headers)
        assert third.status_code == 200


async def test_of_two_quotas_that_are_used_up_the_longer_wait_is_told(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write_keys(file, [key("a", "sp_a", "score", requests_per_s=1.0, tree_nodes_per_s=0.1)])
    async with running(api_keys_file=file) as (client, app):
        app.state.keys._clock = lambda: 0.0
        app.state.keys._callers = {}
        app.state.keys.reload()
        headers = bearing("sp_a")
        first = await client.post("/v1/rescore", json=request(), headers=headers)
        owed = 10 * first.json()["usage"]["tree_nodes"] - 10  # a bucket holds 1 at first
        second = await client.post("/v1/rescore", json=request(), headers=headers)
        assert "0.1 tree nodes per second" in check_problem(second, 429, "quota")["detail"]
        assert int(second.headers["Retry-After"]) == owed


@pytest.mark.parametrize("on_deadline", ["first_pass", "error"])
async def test_the_engines_work_is_charged_though_it_came_late(
    tmp_path: Path, on_deadline: str
) -> None:
    file = tmp_path / "keys.json"
    write_keys(file, [key("a", "sp_a", "score", tree_nodes_per_s=1.0)])
    model = TableModel()
    async with running(fake_loaded(model=model), api_keys_file=file) as (client, app):
        model.gate.clear()
        late = {"deadline_ms": 200.0, "on_deadline": on_deadline}
        body = request(options=late)
        first = await client.post("/v1/rescore", json=body, headers=bearing("sp_a"))
        second = await client.post("/v1/rescore", json=body, headers=bearing("sp_a"))
        lost = {"model": "tiny", "kind": "lost"}
        nodes = app.state.core.metrics.registry.get_sample_value("rescore_tokens_total", lost)
    assert first.status_code == (200 if on_deadline == "first_pass" else 504)
    check_problem(second, 429, "quota")
    assert nodes > 2


@pytest.mark.parametrize("fails_by", ["deadline", "ranking", "hang-up"])
async def test_work_with_a_result_is_charged_though_the_request_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_by: str
) -> None:
    file = tmp_path / "keys.json"
    write_keys(file, [key("a", "sp_a", "score", tree_nodes_per_s=1.0)])
    stuck = TableModel()
    models = fake_loaded("one"), fake_loaded("two", stuck)
    body = request(lms=[{"model": "one"}, {"model": "two"}])
    async with running(*models, api_keys_file=file) as (client, app):
        if fails_by == "ranking":
            monkeypatch.setattr("service.rescoring.rank_lists", lambda *_: 1 / 0)
        else:
            stuck.gate.clear()
        if fails_by == "deadline":
            body["options"] = {"deadline_ms": 200.0, "on_deadline": "error"}
        first = asyncio.create_task(client.post("/v1/rescore", json=body, headers=bearing("sp_a")))
        if fails_by == "hang-up":
            await asyncio.to_thread(stuck.entered.wait, 10.0)
            first.cancel()
        await asyncio.wait([first])
        second = await client.post("/v1/rescore", json=body, headers=bearing("sp_a"))
        value = app.state.core.metrics.registry.get_sample_value
        nodes = value("rescore_tokens_total", {"model": "one", "kind": "lost"})
    if fails_by != "hang-up":
        assert first.result().status_code == (504 if fails_by == "deadline" else 500)
    problem = check_problem(second, 429, "quota")
    assert nodes is not None
    assert nodes > 2
    assert problem["detail"].startswith("the key a has used up its 1 tree nodes per second")


async def test_what_was_found_for_a_list_that_is_not_ranked_is_counted() -> None:
    stuck = TableModel()
    stuck.gate.clear()
    body = request(lms=[{"model": "one"}, {"model": "two"}], options={"deadline_ms": 200.0})
    async with running(fake_loaded("one"), fake_loaded("two", stuck)) as (client, app):
        reply = (await client.post("/v1/rescore", json=body)).json()
        stuck.gate.set()
        value = app.state.core.metrics.registry.get_sample_value
        counted = {
            kind: value("rescore_tokens_total", {"model": "one", "kind": kind})
            for kind in ("scored", "lost")
        }
    assert reply["results"][0]["degraded"] == ["deadline"]
    assert counted == {"scored": reply["usage"]["tree_nodes"], "lost": None}
