"""Whatever the server sends, the caller's hypotheses all come back, each exactly once."""

from __future__ import annotations

import copy
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.client import RescoreReply
from tests.service.client.driving import LISTS, Driven, Fault, World, answered, reply_to

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["results", "hypotheses", "error", "text", "input_rank", "status", "code"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
STATUSES = st.sampled_from([200] * 6 + [204, 301, 400, 401, 404, 422, 429, 500, 502, 503, 504, 599])
HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "Content-Encoding", "Content-Type", "Set-Cookie"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    max_size=2,
)
ERRORS = st.sampled_from(
    [
        httpx.ConnectError("x"),
        httpx.ReadError("x"),
        httpx.ReadTimeout("x"),
        httpx.RemoteProtocolError("x"),
        httpx.InvalidURL("x"),
        httpx.StreamClosed(),
        OSError("x"),
        RecursionError("x"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "x"),
    ]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A right answer with one value replaced, or cut off, or with a byte changed."""
    body = reply_to(LISTS)
    kind = draw(st.sampled_from(["value", "cut", "byte", "none"]))
    if kind == "value":
        _replace(draw, body)
    content = bytearray(json.dumps(body).encode())
    if kind == "cut":
        del content[draw(st.integers(0, len(content))) :]
    if kind == "byte":
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


def _replace(draw: st.DrawFn, body: Any) -> None:
    while True:
        keys = list(body) if isinstance(body, dict) else list(range(len(body)))
        key = draw(st.sampled_from(keys))
        inner = body[key]
        if not isinstance(inner, (dict, list)) or not inner or draw(st.booleans()):
            body[key] = draw(ANYTHING | st.integers(-1, 4))
            return
        body = inner


CONTENT = (
    damaged() | ANYTHING.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)
)
RESPONSES = st.builds(
    lambda status, headers, content: (status, headers, content), STATUSES, HEADERS, CONTENT
)
STEPS = st.lists(ERRORS | RESPONSES, min_size=1, max_size=4)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@given(steps=STEPS, takes_s=st.sampled_from([0.0, 0.3, 5.0]), n_best=st.sampled_from([None, 1, 2]))
@settings(max_examples=150, deadline=None)
def test_every_hypothesis_comes_back_once(
    steps: list[Any], takes_s: float, n_best: int | None, *, is_async: bool
) -> None:
    world = World([Fault(_raw(step), takes_s) for step in steps])
    asked = {"utterances": copy.deepcopy(LISTS), "options": {"n_best": n_best}}
    with Driven(world, is_async=is_async, on_invalid="first_pass") as client:
        reply = client.rescore(asked)
        require_each_once(reply, n_best)
        stats = client.stats
        assert stats.answered + sum(stats.fallbacks.values()) == stats.calls == 1


def _raw(step: Any) -> httpx.Response | Exception:
    if isinstance(step, Exception):
        return step
    status, headers, content = step
    try:
        return httpx.Response(status, headers=headers, content=content)
    except httpx.DecodingError as error:
        return error


def require_each_once(reply: RescoreReply, n_best: int | None) -> None:
    """Pass a reply with the caller's own texts, none lost and none twice."""
    assert [one.id for one in reply.results] == [one["id"] for one in LISTS]
    for one, sent in zip(reply.results, LISTS, strict=True):
        texts = [hypothesis["text"] for hypothesis in sent["hypotheses"]]
        ranks = [hypothesis.input_rank or 0 for hypothesis in one.hypotheses]
        assert [hypothesis.text for hypothesis in one.hypotheses] == [texts[r - 1] for r in ranks]
        assert len(set(ranks)) == len(ranks) == min(n_best or len(texts), len(texts))
        if one.degraded and reply.degraded:
            assert ranks == sorted(ranks)


def test_a_text_that_is_not_the_callers_is_no_answer() -> None:
    body = reply_to(LISTS)
    body["results"][0]["hypotheses"][0]["text"] = "something else"
    with Driven(World([answered(body)]), is_async=False) as client:
        assert client.rescore().degraded == ("invalid_reply",)


def test_a_hypothesis_that_comes_twice_is_no_answer() -> None:
    body = reply_to(LISTS)
    body["results"][1]["hypotheses"][1]["input_rank"] = 1  # of two that have the same text
    with Driven(World([answered(body)]), is_async=False) as client:
        assert client.rescore().degraded == ("invalid_reply",)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "true", '"-1"'])
def test_a_score_that_is_no_finite_number_is_no_answer(number: str) -> None:
    content = answered().content.replace(b'"score": -1', b'"score": ' + number.encode())
    with Driven(World([httpx.Response(200, content=content)]), is_async=False) as client:
        assert client.rescore().degraded == ("invalid_reply",)
