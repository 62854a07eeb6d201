"""POST /v1/rescore."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from quantized_lm import pruning
from quantized_lm.combine import Weights, formula
from quantized_lm.scoring import ScoreRequest, TextScore, score_lists
from quantized_lm.weights_file import write_weights
from service.errors import ERRORS
from service.schemas import RescoreResponse, ScoreResponse
from tests.fakes import TableModel, fake_loaded
from tests.service.serving import Json, request, running, utterance

pytestmark = pytest.mark.anyio


def recombined(hypothesis: Json, weights: Json) -> float:
    """The score of one hypothesis from its components, for log-linear weights."""
    components = hypothesis["components"]
    total = weights["am_scale"] * (components["am"] or 0.0) if weights["am_scale"] else 0.0
    total += weights["graph_scale"] * (components["graph"] or 0.0)
    total += sum(scale * components["lm"][name] for name, scale in weights["lm_scales"].items())
    total += sum(scale * components["extra"][name] for name, scale in weights["extra"].items())
    total += weights["word_bonus"] * hypothesis["num_words"]
    total += weights["token_bonus"] * hypothesis["num_tokens"]
    total += weights["char_bonus"] * hypothesis["num_chars"] + weights["bias"]
    length = {"none": 1, "words": hypothesis["num_words"], "tokens": hypothesis["num_tokens"]}
    return float(total / max(length[weights["length_norm"]], 1))


def _log_prob(scored: tuple[str, TextScore]) -> float:
    return scored[1].log_prob


async def test_the_lm_can_change_the_winner() -> None:
    loaded = fake_loaded()
    (scored,) = score_lists([ScoreRequest(("the cat sat", "a cat sat"))], loaded)
    by_lm = sorted(zip(("the cat sat", "a cat sat"), scored.scores, strict=True), key=_log_prob)
    (worse, lower), (better, higher) = by_lm
    body = request(utterance(worse, better))  # the decoder prefers `worse` by 1 nat
    scale = 2.0 / (higher.log_prob - lower.log_prob)
    async with running(loaded) as (client, _):
        for lm_scale, winner in ((0.0, worse), (scale, better)):
            weighted = body | {"weights": {"lm_scale": lm_scale}}
            (result,) = (await client.post("/v1/rescore", json=weighted)).json()["results"]
            assert result["hypotheses"][0]["text"] == winner
            assert result["changed"] == (winner == better)


async def test_a_reply_has_every_field_of_the_contract() -> None:
    body = request(utterance("the cat sat", "a dog ran", id="u1"))
    async with running() as (client, _):
        response = await client.post("/v1/rescore", json=body, headers={"X-Request-ID": "mine"})
    reply = response.json()
    assert response.status_code == 200
    assert (reply["id"], reply["model"], reply["revision"]) == ("mine", "tiny", "sha256:tiny")
    assert reply["formula"] == "1*am + 0.5*lm[tiny]"
    (result,) = reply["results"]
    assert set(result) == {"id", "changed", "degraded", "hypotheses"}
    assert [entry["rank"] for entry in result["hypotheses"]] == [1, 2]
    assert sum(entry["posterior"] for entry in result["hypotheses"]) == pytest.approx(1.0)
    assert set(result["hypotheses"][0]) == {
        *("rank", "input_rank", "text", "score", "posterior", "components"),
        *("num_words", "num_tokens", "num_chars", "oov"),
    }
    assert set(reply["timing"]) == {
        *("queue_ms", "tokenize_ms", "forward_ms", "combine_ms", "total_ms"),
    }
    usage = reply["usage"]
    assert usage["hypotheses"] == 2
    assert usage["sharing"] == usage["tokens"] / usage["tree_nodes"]


@pytest.mark.parametrize("is_asked", [False, True])
async def test_what_is_sent_is_what_the_schema_says(is_asked: bool) -> None:
    asked = {"return_tokens": is_asked, "return_words": is_asked}
    lists = utterance("the cat", "zzz", "", id="u1"), {"hypotheses": [{"text": "unscored"}]}
    async with running() as (client, _):
        ranked = await client.post("/v1/rescore", json=request(*lists, options=asked))
        scored = await client.post("/v1/score", json={"texts": ["the cat", "zzz", ""], **asked})
    assert (ranked.status_code, scored.status_code) == (200, 200)
    TypeAdapter(RescoreResponse).validate_json(ranked.content)
    TypeAdapter(ScoreResponse).validate_json(scored.content)


async def test_an_utterance_that_fails_is_counted_whether_or_not_it_is_alone() -> None:
    good, bad = utterance("a cat"), utterance("the cat sat " * 40)
    async with running() as (client, app):
        value = app.state.core.metrics.registry.get_sample_value
        for lists, status, failed in (([bad], 422, 1.0), ([bad, good], 200, 2.0)):
            reply = await client.post("/v1/rescore", json=request(*lists))
            assert reply.status_code == status
            labels = {"model": "tiny", "outcome": "failed"}
            assert value("rescore_utterances_total", labels) == failed


async def test_a_long_request_is_answered_like_a_short_one() -> None:
    many = [utterance("the cat sat", f"a cat sat {'on a mat ' * 6}") for _ in range(64)]
    long = [utterance(*["the cat sat on a mat and saw an old dog"] * 100) for _ in range(16)]
    async with running() as (client, _):
        short = (await client.post("/v1/rescore", json=request(many[0]))).json()["results"]
        replies = [await client.post("/v1/rescore", json=request(*lists)) for lists in (many, long)]
    assert replies[0].json()["results"] == short * 64
    assert [len(result["hypotheses"]) for result in replies[1].json()["results"]] == [100] * 16


async def test_headers_say_revision_times_and_request() -> None:
    async with running() as (client, _):
        response = await client.post("/v1/rescore", json=request())
    assert response.headers["X-Model-Revision"] == "sha256:tiny"
    assert response.headers["X-Request-ID"].startswith("req_")
    assert response.headers["X-Request-ID"] == response.json()["id"]
    stages = [part.partition(";dur=")[0] for part in response.headers["Server-Timing"].split(", ")]
    assert stages == ["queue", "tokenize", "forward", "combine", "total"]


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"am_scale": 0.3, "lm_scale": -0.7, "word_bonus": 0.2, "bias": 1.5},
        {"graph_scale": 2.0, "token_bonus": -0.1, "length_norm": "tokens"},
        {"extra": {"ctc": 0.4}, "char_bonus": 0.01, "length_norm": "words"},
        {"am_scale": 0.0, "lm_scale": 0.0},
    ],
)
async def test_components_times_weights_add_up_to_the_score(weights: Json) -> None:
    texts = ("the cat sat on a mat", "a cat sat", "", "an old dog")
    hypotheses = [
        {"text": text, "am_score": -3.5 * rank, "lm_score": -1.0 - rank, "extra": {"ctc": -rank}}
        for rank, text in enumerate(texts)
    ]
    async with running() as (client, _):
        body = request({"hypotheses": hypotheses}, weights=weights)
        reply = (await client.post("/v1/rescore", json=body)).json()
    for hypothesis in reply["results"][0]["hypotheses"]:
        assert recombined(hypothesis, reply["weights"]) == pytest.approx(
            hypothesis["score"], abs=1e-9
        )


async def test_a_tuned_file_holds_what_a_request_takes(tmp_path: Path) -> None:
    weights = Weights(am_scale=0.3, lm_scales={"tiny": 0.7}, word_bonus=-1.5, extra={"ctc": 0.1})
    write_weights(tmp_path / "weights.json", weights, {})
    fields = json.loads((tmp_path / "weights.json").read_text())["request"]
    hypotheses = [{"text": "the cat", "am_score": -1.0, "extra": {"ctc": -2.0}}]
    async with running() as (client, _):
        body = {**request({"hypotheses": hypotheses}), **fields}
        answer = await client.post("/v1/rescore", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["formula"] == formula(weights)


async def test_ties_keep_the_decoders_order() -> None:
    same = {"text": "the cat", "am_score": -1.0}
    async with running() as (client, _):
        reply = (await client.post("/v1/rescore", json=request({"hypotheses": [same] * 3}))).json()
    (result,) = reply["results"]
    assert [entry["input_rank"] for entry in result["hypotheses"]] == [1, 2, 3]
    assert result["changed"] is False


async def test_an_empty_hypothesis_is_silence() -> None:
    loaded = fake_loaded()
    async with running(loaded) as (client, _):
        reply = (await client.post("/v1/rescore", json=request(utterance("")))).json()
    (hypothesis,) = reply["results"][0]["hypotheses"]
    assert hypothesis["num_tokens"] == 0
    assert isinstance(loaded.model, TableModel)
    assert hypothesis["components"]["lm"]["tiny"] == pytest.approx(float(loaded.model.table[0, 0]))


async def test_the_first_pass_is_known_by_either_name_of_the_graph_score() -> None:
    one = {"text": "a", "am_score": -1.0, "graph_score": -2.0}
    other = {"text": "a", "am_score": -1.0, "lm_score": -2.0}
    async with running() as (client, _):
        bodies = [request({"hypotheses": [h]}, weights={"graph_scale": 1.0}) for h in (one, other)]
        replies = [(await client.post("/v1/rescore", json=body)).json() for body in bodies]
        both = await client.post("/v1/rescore", json=request({"hypotheses": [one | other]}))
    assert replies[0]["results"] == replies[1]["results"]
    assert both.status_code == 422


async def test_n_best_cuts_the_reply_but_not_the_posterior() -> None:
    texts = ("the cat", "a cat", "an old cat")
    async with running() as (client, _):
        whole = (await client.post("/v1/rescore", json=request(utterance(*texts)))).json()
        body = request(utterance(*texts), options={"n_best": 1, "return_posterior": True})
        cut = (await client.post("/v1/rescore", json=body)).json()
    assert cut["results"][0]["hypotheses"] == whole["results"][0]["hypotheses"][:1]


@pytest.mark.parametrize("weights", [{}, {"lm_scale": 4.0, "length_norm": "words"}])
async def test_without_a_posterior_only_what_can_win_is_scored(
    weights: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "FEWEST_NODES", 0)
    lists = [
        utterance(*(f"the {animal} {'sat on a mat and ' * n}ran" for n in range(4)), id=animal)
        for animal in ("cat", "dog")
    ]
    body = request(*lists, weights=weights)
    options = {"n_best": 1, "return_tokens": True}
    async with running() as (client, app):
        asked = body | {"options": options | {"return_posterior": True}}
        whole = (await client.post("/v1/rescore", json=asked)).json()
        pruned = (await client.post("/v1/rescore", json=body | {"options": options})).json()
        value = app.state.core.metrics.registry.get_sample_value
        kinds = {"model": "tiny", "kind": "skipped"}
        assert value("rescore_tokens_total", kinds) == pruned["usage"]["skipped_nodes"]
        assert value("rescore_score_margin_count", {"model": "tiny"}) == 2.0
    for result in whole["results"]:
        del result["hypotheses"][0]["posterior"]
    assert pruned["results"] == whole["results"]
    assert whole["usage"]["skipped_nodes"] == whole["usage"]["skipped_hypotheses"] == 0
    assert pruned["usage"]["skipped_hypotheses"] > 0
    assert (
        pruned["usage"]["skipped_nodes"] + pruned["usage"]["tree_nodes"]
        == whole["usage"]["tree_nodes"]
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": {"lm_scale": -0.5}},
        {"weights": {"mode": "linear", "graph_scale": 1.0, "lm_scale": 0.5}},
        {"lms": [{"model": "one"}, {"model": "two"}]},
        {"options": {"n_best": 2, "return_posterior": False}},
        {"options": {"n_best": 1, "return_posterior": True}},
    ],
)
async def test_all_is_scored_where_the_best_could_not_be_known_otherwise(
    fields: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "FEWEST_NODES", 0)
    hypotheses = [
        {"text": f"the cat {'sat ' * n}", "am_score": -n, "graph_score": -9.0 * n} for n in range(4)
    ]
    body = request({"hypotheses": hypotheses}, options={"n_best": 1})
    body |= {} if "lms" in fields else {"model": "one"}
    async with running(fake_loaded("one"), fake_loaded("two")) as (client, _):
        reply = (await client.post("/v1/rescore", json=body | fields)).json()
    assert reply["usage"]["skipped_hypotheses"] == 0


async def test_tokens_and_words_come_back_when_asked_for() -> None:
    options = {"return_tokens": True, "return_words": True}
    async with running() as (client, _):
        body = request(utterance("The cat!"), options=options)
        reply = (await client.post("/v1/rescore", json=body)).json()
    (hypothesis,) = reply["results"][0]["hypotheses"]
    lm = hypothesis["components"]["lm"]["tiny"]
    tokens = hypothesis["tokens"]["tiny"]
    assert tokens[-1]["piece"] == "</s>"
    assert sum(token["log_prob"] for token in tokens) == pytest.approx(lm, abs=1e-5)
    assert [word["word"] for word in hypothesis["words"]["tiny"]] == ["the", "cat"]
    assert hypothesis["text"] == "The cat!"


async def test_a_partial_is_scored_without_its_end() -> None:
    async with running() as (client, _):
        bodies = [request(utterance("the cat", final=final)) for final in (True, False)]
        final, partial = [(await client.post("/v1/rescore", json=body)).json() for body in bodies]
    assert final["usage"]["tokens"] == partial["usage"]["tokens"] + 1


async def test_context_changes_the_score_and_is_not_scored() -> None:
    async with running() as (client, _):
        plain = (await client.post("/v1/rescore", json=request(utterance("the cat", "a")))).json()
        body = request(utterance("the cat", "a", context={"text": ["an old dog"]}))
        in_context = (await client.post("/v1/rescore", json=body)).json()
    assert in_context["usage"] == plain["usage"]
    assert in_context["results"] != plain["results"]


async def test_oov_words_are_reported_or_refused() -> None:
    async with running() as (client, _):
        scored = (await client.post("/v1/rescore", json=request(utterance("the zzz")))).json()
        body = request(utterance("the cat", "the zzz"), options={"oov": "error"})
        refused = await client.post("/v1/rescore", json=body)
    assert scored["results"][0]["hypotheses"][0]["oov"] == ["zzz"]
    assert (refused.status_code, refused.json()["code"]) == (422, "oov")
    assert refused.json()["errors"][0]["pointer"] == "/utterances/0/hypotheses/1/text"


async def test_several_lms_each_have_a_component() -> None:
    models = fake_loaded("one"), fake_loaded("two", TableModel(seed=2))
    lms = [{"model": "two", "lm_scale": 0.25}, {"model": "one"}]
    async with running(*models) as (client, _):
        reply = (await client.post("/v1/rescore", json=request(lms=lms))).json()
        again = (await client.post("/v1/rescore", json=request(model="one"))).json()
    assert reply["model"] == "two,one"
    assert reply["revision"] == "sha256:two,sha256:one"
    assert reply["weights"]["lm_scales"] == {"two": 0.25, "one": 0.5}
    by_text = {h["text"]: h["components"]["lm"] for h in reply["results"][0]["hypotheses"]}
    for hypothesis in again["results"][0]["hypotheses"]:
        assert hypothesis["components"]["lm"]["one"] == by_text[hypothesis["text"]]["one"]
    assert reply["usage"]["hypotheses"] == 4


async def test_a_bad_utterance_among_several_fails_alone() -> None:
    good = utterance("the cat", id="good")
    unscored = {"id": "unscored", "hypotheses": [{"text": "a"}]}
    long = utterance("the cat", "cat " * 100, id="long")
    async with running() as (client, _):
        response = await client.post("/v1/rescore", json=request(good, unscored, long, good))
    assert response.status_code == 200
    first, second, third, fourth = response.json()["results"]
    assert first == fourth
    assert first["hypotheses"][0]["text"] == "the cat"
    assert second["id"] == "unscored"
    assert second["error"]["code"] == "missing_score"
    assert second["error"]["errors"][0]["pointer"] == "/utterances/1/hypotheses/0/am_score"
    assert third["error"]["code"] == "too_long"
    assert third["error"]["errors"][0]["pointer"] == "/utterances/2/hypotheses/1/text"


@pytest.mark.parametrize(
    ("bad", "fields", "status", "code"),
    [
        ({"hypotheses": [{"text": "a"}]}, {}, 422, "missing_score"),
        (utterance("cat " * 100), {}, 422, "too_long"),
        (utterance("zzz"), {"options": {"oov": "error"}}, 422, "oov"),
        (utterance(*("the " * n + "cat" for n in range(30))), {}, 413, "too_many_tokens"),
    ],
)
async def test_a_bad_utterance_alone_fails_the_request(
    bad: Json, fields: Json, status: int, code: str
) -> None:
    async with running(budget_tokens=65) as (client, _):
        response = await client.post("/v1/rescore", json=request(bad, **fields))
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json()["errors"][0]["pointer"].startswith("/utterances/0/hypotheses")


async def test_a_failed_batch_is_an_error_to_every_request_in_it() -> None:
    model = TableModel(error=RuntimeError("the kernel is on fire"))
    model.gate.clear()
    async with running(fake_loaded(model=model)) as (client, _):
        calls = [asyncio.create_task(client.post("/v1/rescore", json=request())) for _ in range(5)]
        while not model.entered.is_set():
            await asyncio.sleep(0)
        model.gate.set()
        responses = await asyncio.gather(*calls)
        model.error = None
        after = await client.post("/v1/rescore", json=request())
    assert [response.status_code for response in responses] == [500] * 5
    assert {response.json()["code"] for response in responses} == {ERRORS[Exception].code}
    assert "fire" not in responses[0].text
    assert all(response.headers["X-Request-ID"] for response in responses)
    assert after.status_code == 200


async def test_a_score_does_not_depend_on_what_shares_the_batch() -> None:
    lists = [utterance("the cat sat", "a cat sat"), utterance("an old dog ran far", "it")]
    async with running() as (client, _):
        together = (await client.post("/v1/rescore", json=request(*lists))).json()["results"]
        alone = [
            (await client.post("/v1/rescore", json=request(one))).json()["results"][0]
            for one in lists
        ]
    assert together == alone


async def test_no_reply_holds_a_number_that_json_lacks() -> None:
    model = TableModel()
    model.table[:] = -math.inf
    async with running(fake_loaded(model=model)) as (client, _):
        response = await client.post("/v1/rescore", json=request())
    assert (response.status_code, response.json()["code"]) == (500, "internal")
