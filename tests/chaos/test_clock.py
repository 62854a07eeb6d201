"""The wall clock may jump: deadlines and rate limits do not care."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from service.api_keys import ApiKey, hash_of, write_keys
from tests.fakes import TableModel, fake_loaded
from tests.service.serving import request, running, utterance

pytestmark = [pytest.mark.anyio, pytest.mark.real_clock]
DAY_S = 86_400.0
SECRET = "sp_of-a-test"
JUMPS = [DAY_S, -DAY_S]
MANY = 500  # more than a quota of five in a second lets through, however slow this machine is
PATIENCE_S = 10.0


@pytest.fixture
def jumps(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    """From now on, every look at the wall clock is that much further on than the one before."""
    real, looks = time.time, iter(range(1, 1 << 30))
    monkeypatch.setattr(time, "time", lambda: real() + jump_s * next(looks))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))


@pytest.mark.parametrize("jump_s", JUMPS)
@pytest.mark.usefixtures("jumps")
async def test_a_request_with_time_left_is_not_late() -> None:
    async with running() as (client, _):
        for _ in range(5):
            answer = await client.post("/v1/rescore", json=request())
            assert answer.status_code == 200
            assert answer.json()["results"][0]["degraded"] == []


@pytest.mark.parametrize("jump_s", JUMPS)
@pytest.mark.usefixtures("jumps")
async def test_a_request_that_is_late_is_answered_all_the_same() -> None:
    model = TableModel()
    model.gate.clear()
    async with running(fake_loaded(model=model)) as (client, _):
        started_s = time.monotonic()
        body = request(utterance("the cat", "a cat"), options={"deadline_ms": 50.0})
        answer = await client.post("/v1/rescore", json=body)
        assert answer.json()["results"][0]["degraded"] == ["deadline"]
        assert 0.05 <= time.monotonic() - started_s < 5.0


@pytest.mark.parametrize("jump_s", JUMPS)
@pytest.mark.usefixtures("jumps")
async def test_a_quota_is_neither_refilled_nor_frozen(tmp_path: Path) -> None:
    per_s = 5.0
    key = ApiKey(
        name="asr", scopes=("score",), sha256=hash_of(SECRET), created="2026-11-21",
        requests_per_s=per_s,
    )  # fmt: skip
    keys = tmp_path / "keys.json"
    write_keys(keys, [key])
    async with running(api_keys_file=keys) as (client, _):
        client.headers["Authorization"] = f"Bearer {SECRET}"
        started_s = time.monotonic()
        statuses = [await status_of_one(client)]
        while statuses[-1] == 200 and len(statuses) < MANY:
            statuses.append(await status_of_one(client))
        allowed = per_s + 1 + per_s * (time.monotonic() - started_s)
        assert statuses[-1] == 429
        assert statuses.count(200) <= allowed
        while (status := await status_of_one(client)) == 429:
            assert time.monotonic() - started_s < PATIENCE_S
        assert status == 200


async def status_of_one(client: httpx.AsyncClient) -> int:
    """Of the answer to one request."""
    return (await client.post("/v1/rescore", json=request())).status_code
