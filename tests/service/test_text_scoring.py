"""POST /v1/score."""

from __future__ import annotations

import math

import pytest

from service.replies import perplexity
from tests.service.serving import running

pytestmark = pytest.mark.anyio


async def test_a_text_gets_its_total_its_tokens_and_its_words() -> None:
    async with running() as (client, _):
        response = await client.post("/v1/score", json={"texts": ["The cat sat.", ""]})
    reply = response.json()
    cat, silence = reply["results"]
    assert (reply["model"], reply["revision"]) == ("tiny", "sha256:tiny")
    assert (cat["text"], cat["num_words"], cat["num_tokens"]) == ("The cat sat.", 3, 3)
    assert sum(token["log_prob"] for token in cat["tokens"]) == pytest.approx(cat["log_prob"])
    words = sum(word["log_prob"] for word in cat["words"])
    assert words + cat["tokens"][-1]["log_prob"] == pytest.approx(cat["log_prob"])
    assert cat["perplexity_per_token"] == pytest.approx(math.exp(-cat["log_prob"] / 4))
    assert cat["perplexity_per_word"] == pytest.approx(math.exp(-cat["log_prob"] / 4))
    assert [token["piece"] for token in silence["tokens"]] == ["</s>"]
    assert response.headers["X-Model-Revision"] == "sha256:tiny"


async def test_what_is_not_asked_for_does_not_come_back() -> None:
    body = {"texts": ["zzz"], "return_tokens": False, "return_words": False, "final": False}
    async with running() as (client, _):
        (result,) = (await client.post("/v1/score", json=body)).json()["results"]
    assert not {"tokens", "words"} & set(result)
    assert result["oov"] == ["zzz"]


async def test_a_score_is_the_one_that_rescoring_reports() -> None:
    lists = {"utterances": [{"hypotheses": [{"text": "an old dog", "am_score": -1.0}]}]}
    async with running() as (client, _):
        rescored = (await client.post("/v1/rescore", json=lists)).json()
        scored = (await client.post("/v1/score", json={"texts": ["an old dog"]})).json()
    (hypothesis,) = rescored["results"][0]["hypotheses"]
    assert scored["results"][0]["log_prob"] == hypothesis["components"]["lm"]["tiny"]


async def test_a_text_that_is_too_long_is_named() -> None:
    async with running(budget_tokens=65) as (client, _):
        long = await client.post("/v1/score", json={"texts": ["a", "cat " * 100]})
        many = await client.post("/v1/score", json={"texts": ["cat " * n for n in range(30)]})
        empty = await client.post("/v1/score", json={"texts": []})
    assert (long.status_code, long.json()["code"]) == (422, "too_long")
    assert long.json()["errors"][0]["pointer"] == "/texts/1"
    assert many.status_code == 200  # prefixes of one another share their nodes
    assert (empty.status_code, empty.json()["errors"][0]["pointer"]) == (422, "/texts")


async def test_more_texts_than_a_forward_pass_takes_are_refused() -> None:
    texts = [f"{'a ' * n}cat" for n in range(40)]
    async with running(budget_tokens=65) as (client, _):
        response = await client.post("/v1/score", json={"texts": texts})
    assert (response.status_code, response.json()["code"]) == (413, "too_many_tokens")
    assert response.json()["errors"][0]["pointer"] == "/texts"


def test_a_perplexity_that_is_no_number_is_null() -> None:
    assert perplexity(-1.0, 0) is None
    assert perplexity(-1e5, 1) is None
    assert perplexity(-2.0, 2) == math.e
