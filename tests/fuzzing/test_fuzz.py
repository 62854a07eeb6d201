"""A thousandth of `make fuzz`, and that it sees what it looks for."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from tests.fuzzing.fuzz import fault_of, fuzz, request_of
from tests.fuzzing.mutations import Sent, damaged
from tests.fuzzing.seeds import seeds

NUMBERS = range(1200)
PROBLEM = {"content-type": "application/problem+json"}


def test_damaged_requests_are_answered_or_refused() -> None:
    found = asyncio.run(fuzz(NUMBERS, seed=1))
    assert found.faults == []
    assert found.is_memory_flat
    assert sum(found.statuses.values()) == len(NUMBERS)
    for path in ("/v1/rescore", "/v1/score", "/v1/rescore/lattice"):
        assert found.statuses[path, 200] > 0  # some damage does no harm, and some does
        assert found.statuses[path, 422] > 0


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (503, b"{}"),
        (499, b"{}"),
        (200, b'{"score": NaN}'),
        (200, b"{"),
        (200, b'"\xff"'),
        (422, b'{"code": "no_such_code", "status": 422}'),
        (422, b'{"code": "invalid_field", "status": 400}'),
    ],
)
def test_a_wrong_answer_is_seen(status: int, body: bytes) -> None:
    assert fault_of(status, PROBLEM, body)


def test_right_answers_are_none_of_these() -> None:
    problem = b'{"code": "invalid_field", "status": 422}'
    assert fault_of(422, PROBLEM, problem) == ""
    assert fault_of(422, {"content-type": "application/json"}, problem)
    assert fault_of(200, {}, b"{}") == ""
    assert fault_of(504, PROBLEM, b'{"code": "deadline_exceeded", "status": 504}') == ""


def test_a_number_makes_its_request_again() -> None:
    valid = seeds()
    made = [request_of(number, 3, valid) for number in range(200)]
    assert made == [request_of(number, 3, valid) for number in range(200)]
    assert len({(one.content, one.query, str(one.headers)) for one in made}) > 150


def test_damage_changes_what_is_sent_now_and_then_only() -> None:
    sent = Sent("/v1/score", json.dumps({"texts": ["the", "cat"]}).encode())
    chance = random.Random(0)
    made = [damaged(sent, chance) for _ in range(300)]
    assert 10 < sum(one == sent for one in made) < 150
