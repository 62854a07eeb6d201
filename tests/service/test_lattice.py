"""POST /v1/rescore/lattice: every format, what comes back, and what is refused."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.spoken import ArcWeights
from quantized_lm.lattice_scoring import LatticeRequest, LatticeScores, score_lattices
from service import latticework
from service.lattice_schemas import LatticeResponse
from tests.fakes import TableModel, fake_loaded
from tests.quantized_lm.lattice.format_cases import make_lattice
from tests.quantized_lm.lattice.random_lattices import random_lattice
from tests.service.serving import Json, running
from tests.service.test_errors import check_problem

pytestmark = pytest.mark.anyio
PATH = "/v1/rescore/lattice"
JSON = {"Content-Type": "application/json"}
FORMATS = tuple(LATTICE_FORMATS)
RAW_FORMATS = tuple(name for name in FORMATS if name != "k2-json")
WITHOUT_WORDS = ("k2-pt", "k2-text", "kaldi-text", "kaldi-binary", "openfst-text")
SYMBOLS = {1: "the", 2: "cat", 3: "sat", 4: "mat", 5: "!NULL"}
SLF = """VERSION=1.0
UTTERANCE=u1
N=4 L=4
I=0 t=0.00
I=1 t=0.25
I=2 t=0.50
I=3 t=0.75
J=0 S=0 E=1 W=the a=-1 l=-0.5
J=1 S=1 E=2 W=cat a=-2.5 l=-1
J=2 S=1 E=2 W=mat a=-2 l=-1.25
J=3 S=2 E=3 W=sat a=-1 l=-2
"""


def lattice_of(name: str = "u1") -> Lattice:
    """Two times two sequences."""
    return make_lattice(
        [
            (0, 1, [1], -1.5, -0.25),
            (1, 2, [2], -2.25, -0.5),
            (1, 2, [4], -2.0, -1.0),
            (2, 3, [3], -1.0, -0.5),
            (2, 3, [5], -1.25, 0.0),
            (3, 4, [], 0.0, 0.0),
        ],
        symbols=SYMBOLS,
        utterance=name,
    )


def sent_as(name: str, lattice: Lattice) -> Json:
    """An entry of `lattices` in this format."""
    content = LATTICE_FORMATS[name].write([lattice])
    symbols = {str(symbol): word for symbol, word in (lattice.symbols or {}).items()}
    if name == "k2-json":
        return {"lattice": json.loads(content)}
    entry: Json = {"format": name}
    if name in WITHOUT_WORDS:
        entry["symbols"] = symbols
    is_text = LATTICE_FORMATS[name].media_type.startswith("text/")
    if is_text:
        return entry | {"text": content.decode()}
    return entry | {"base64": base64.b64encode(content).decode()}


def content_of(sent: Json) -> bytes:
    """A rescored lattice as bytes of its format."""
    if "json" in sent:
        return json.dumps(sent["json"]).encode()
    return sent["text"].encode() if "text" in sent else base64.b64decode(sent["base64"])


def read_back(sent: Json) -> Lattice:
    """A rescored lattice of a reply."""
    symbols = {int(symbol): word for symbol, word in sent.get("symbols", SYMBOLS).items()}
    options = ReadOptions(symbols=symbols)
    (lattice,) = LATTICE_FORMATS[sent["format"]].read(content_of(sent), options)
    return lattice


def in_library(lattice: Lattice, **limits: Any) -> LatticeScores:
    """The same search without a server."""
    asked = LatticeRequest(lattice, ArcWeights(), 0.5, SearchLimits(**limits))
    return score_lattices([asked], fake_loaded())[0]


async def post(client: httpx.AsyncClient, *lattices: Json, **fields: Any) -> httpx.Response:
    """The answer to lattices in JSON."""
    return await client.post(PATH, json={"lattices": list(lattices), **fields})


def recombined(hypothesis: Json, weights: Json) -> float:
    """The score of a hypothesis out of its components."""
    parts = hypothesis["components"]
    (lm_scale,) = weights["lm_scales"].values()
    (lm,) = parts["lm"].values()
    return float(
        weights["am_scale"] * (parts["am"] or 0.0)
        + weights["graph_scale"] * (parts["graph"] or 0.0)
        + lm_scale * (lm or 0.0)
        + weights["word_bonus"] * hypothesis["num_words"]
        + weights["token_bonus"] * hypothesis["num_tokens"]
    )


@pytest.mark.parametrize("name", FORMATS)
async def test_every_format_comes_in_and_goes_out_rescored(name: str) -> None:
    options = {"n_best": 4, "return_lattice": True, "return_words": True}
    async with running() as (client, _):
        response = await post(client, sent_as(name, lattice_of()), options=options)
    reply = response.json()
    assert response.status_code == 200, reply
    TypeAdapter(LatticeResponse).validate_json(response.content)
    (result,) = reply["results"]
    held = LATTICE_FORMATS[name].read(
        LATTICE_FORMATS[name].write([lattice_of()]), ReadOptions(symbols=SYMBOLS)
    )
    expected = in_library(held[0], num_best=4)
    hypotheses = result["hypotheses"]
    assert [entry["text"] for entry in hypotheses] == [one.text for one in expected.hypotheses]
    assert len(hypotheses) == 4
    assert sum(entry["posterior"] for entry in hypotheses) == pytest.approx(1.0)
    sent = result["lattice"]
    assert (sent["format"], sent["media_type"]) == (name, LATTICE_FORMATS[name].media_type)
    best = score_lattices(
        [LatticeRequest(read_back(sent), ArcWeights(graph_scale=1.0), 0.0)], fake_loaded()
    )[0].hypotheses[0]
    assert best.text == hypotheses[0]["text"]
    assert best.total == pytest.approx(hypotheses[0]["score"], abs=1e-4)


@pytest.mark.parametrize("name", RAW_FORMATS)
async def test_a_body_is_a_lattice_in_the_format_of_its_content_type(name: str) -> None:
    one = LATTICE_FORMATS[name]
    content = one.write([lattice_of()])
    query: dict[str, str | float] = {
        "n_best": 2,
        "return_words": "true",
        "lm_scale": 0.5,
        "order": "null",
    }
    headers = {"Content-Type": f"{one.media_type}; charset=utf-8"}
    async with running() as (client, _):
        response = await client.post(PATH, content=content, params=query, headers=headers)
        packed = await client.post(
            PATH,
            content=gzip.compress(content),
            params=query,
            headers=headers | {"Content-Encoding": "gzip"},
        )
    if name in WITHOUT_WORDS:
        assert check_problem(response, 422, "invalid_lattice")["errors"][0]["pointer"] == "/symbols"
        return
    assert response.status_code == 200, response.text
    expected = in_library(lattice_of(), num_best=2, order=None)
    texts = [entry["text"] for entry in response.json()["results"][0]["hypotheses"]]
    assert texts == [entry.text for entry in expected.hypotheses]
    assert packed.json()["results"] == response.json()["results"]


async def test_an_archive_of_words_is_several_lattices() -> None:
    archive = b"".join(
        f"{name} \n0 1 the -1,0,\n1 2 {word} 0.5,1.5,\n2\n\n".encode()
        for name, word in (("a", "cat"), ("b", "mat"))
    )
    headers = {"Content-Type": "text/x-kaldi-lattice"}
    async with running() as (client, _):
        response = await client.post(PATH, content=archive, headers=headers)
        many = await client.post(
            PATH,
            content=archive.replace(b"a ", b"c ", 1) * 8 + archive,
            headers=headers,
        )
    results = response.json()["results"]
    assert [(one["id"], one["hypotheses"][0]["text"]) for one in results] == [
        ("a", "the cat"),
        ("b", "the mat"),
    ]
    assert "at most 16" in check_problem(many, 422, "invalid_lattice")["detail"]


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"am_scale": 0.3, "graph_scale": 0.7, "lm_scale": 1.5},
        {"graph_scale": -1.0, "lm_scale": 0.0, "word_bonus": 0.5},
        {"am_scale": 0.0, "lm_scale": -0.5, "token_bonus": -0.25},
    ],
)
async def test_components_times_weights_add_up_to_the_score(weights: Json) -> None:
    async with running() as (client, _):
        for seed in range(12):
            body = sent_as("htk", random_lattice(seed))
            options = {"n_best": 10, "return_lattice": True}
            response = await post(client, body, weights=weights, options=options)
            reply = response.json()
            assert response.status_code == 200, reply
            for hypothesis in reply["results"][0]["hypotheses"]:
                expected = recombined(hypothesis, reply["weights"])
                assert hypothesis["score"] == pytest.approx(expected, abs=1e-5)


async def test_words_have_times_lm_scores_and_confidences() -> None:
    options = {"n_best": 2, "return_words": True, "order": None}
    async with running() as (client, _):
        reply = (await post(client, {"text": SLF, "format": "htk"}, options=options)).json()
    (result,) = reply["results"]
    assert (result["id"], result["exact"], result["cuts"]) == ("u1", True, [])
    best, second = result["hypotheses"]
    assert [word["word"] for word in best["words"]] == best["text"].split()
    times = [(word["start"], word["end"]) for word in best["words"]]
    assert times == [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75)]
    confidences = [word["confidence"] for word in best["words"]]
    assert confidences == pytest.approx([1.0, best["posterior"], 1.0])
    assert second["words"][1]["confidence"] == pytest.approx(second["posterior"])
    lm = best["components"]["lm"]["tiny"]
    assert sum(word["lm"] for word in best["words"]) > lm  # </s> belongs to no word
    assert reply["usage"]["density"] == pytest.approx(4 / 3)


async def test_without_a_wish_neither_words_nor_lattice_come_back() -> None:
    async with running() as (client, _):
        reply = (await post(client, {"text": SLF, "format": "htk"})).json()
    (result,) = reply["results"]
    assert set(result) == {"id", "exact", "degraded", "cuts", "hypotheses"}
    (hypothesis,) = result["hypotheses"]
    assert set(hypothesis) == {
        *("rank", "text", "score", "posterior", "components"),
        *("num_words", "num_tokens", "oov"),
    }
    assert set(reply["usage"]) == {
        *("arcs", "states", "density", "lm_steps", "tree_nodes", "cache_hits"),
        *("waves", "sequences"),
    }


async def test_context_final_and_silence_count() -> None:
    entry = {"text": SLF, "format": "htk"}
    async with running() as (client, _):
        replies = [
            (await post(client, entry | more, options=options)).json()["results"][0]
            for more, options in (
                ({}, {}),
                ({"final": False}, {}),
                ({"context": {"text": ["a dog"]}}, {}),
                ({"id": "mine"}, {"silence": ["the"]}),
            )
        ]
    scores = {result["hypotheses"][0]["score"] for result in replies}
    assert len(scores) == 4
    assert replies[3]["id"] == "mine"
    assert "the" not in replies[3]["hypotheses"][0]["text"].split()


@pytest.mark.parametrize(
    ("options", "cuts", "degraded"),
    [
        ({"order": None, "patience": None}, [], []),
        ({"order": None, "max_lm_steps": 1, "seeds": 1}, [], ["max_lm_steps"]),
    ],
)
async def test_what_ended_a_search_is_said(
    options: Json, cuts: list[str], degraded: list[str]
) -> None:
    async with running() as (client, app):
        reply = (await post(client, sent_as("htk", random_lattice(3)), options=options)).json()
        value = app.state.core.metrics.registry.get_sample_value
        counted = value("rescore_degraded_total", {"model": "tiny", "reason": "max_lm_steps"})
        assert value("rescore_lattice_arcs_count", {"model": "tiny"}) == 1.0
        assert value("rescore_lattice_lm_steps_sum", {"model": "tiny"}) == float(
            reply["usage"]["lm_steps"]
        )
    (result,) = reply["results"]
    assert (result["cuts"], result["degraded"]) == (cuts, degraded)
    assert result["exact"] is (not degraded)
    assert counted == (1.0 if degraded else None)


async def test_a_lattice_longer_than_the_model_comes_back_in_its_own_order() -> None:
    arcs = [(at, at + 1, [1 + at % 2], -1.0, 0.0) for at in range(80)]
    long = make_lattice(arcs, symbols=SYMBOLS)
    options = {"return_words": True, "return_lattice": True}
    async with running() as (client, _):
        response = await post(client, sent_as("k2-json", long), options=options)
    (result,) = response.json()["results"]
    (hypothesis,) = result["hypotheses"]
    assert result["degraded"] == ["max_tokens"]
    assert hypothesis["text"] == " ".join(["the", "cat"] * 40)
    assert (hypothesis["score"], hypothesis["components"]["lm"]) == (-80.0, {"tiny": None})
    assert hypothesis["words"][0] == {"word": "the", "lm": None, "confidence": 1.0}
    assert read_back(result["lattice"]).num_arcs >= 80
    TypeAdapter(LatticeResponse).validate_json(response.content)


async def test_a_bad_lattice_among_several_fails_alone() -> None:
    good = {"text": SLF, "format": "htk"}
    bad = {"id": "bad", "lattice": {"arcs": [[0, 1, 1, 0.5], [1, 5, -1, 0.0]]}}
    unknown = sent_as("kaldi-text", lattice_of()) | {"symbols": None}
    async with running() as (client, app):
        reply = (await post(client, good, bad, unknown, good)).json()
        failed = {"model": "tiny", "outcome": "failed"}
        value = app.state.core.metrics.registry.get_sample_value
        assert value("rescore_utterances_total", failed) == 2.0
        alone = await post(client, bad)
    first, second, third, fourth = reply["results"]
    assert first == fourth
    assert (second["id"], second["error"]["code"]) == ("bad", "invalid_lattice")
    assert second["error"]["errors"][0]["pointer"].startswith("/lattices/1/lattice/arcs")
    assert third["error"]["errors"][0]["pointer"] == "/lattices/2/symbols"
    problem = check_problem(alone, 422, "invalid_lattice")
    assert problem["errors"][0]["pointer"].startswith("/lattices/0/lattice/arcs")


async def test_a_search_that_may_follow_no_arcs_still_has_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latticework, "MAX_ARCS_FOLLOWED", 1)
    async with running() as (client, _):
        reply = (await post(client, {"text": SLF, "format": "htk"})).json()
    (result,) = reply["results"]
    assert result["degraded"] == ["max_arcs"]
    assert result["hypotheses"][0]["text"] == "the mat sat"


async def test_a_path_that_cannot_be_said_has_no_number() -> None:
    body = {"text": SLF.replace("l=-0.5", "l=-inf"), "format": "htk"}
    async with running() as (client, _):
        response = await post(client, body, options={"return_lattice": True})
        TypeAdapter(LatticeResponse).validate_json(response.content)
    (hypothesis,) = response.json()["results"][0]["hypotheses"]
    assert hypothesis["components"]["graph"] is None


async def test_a_broken_model_is_a_500() -> None:
    model = TableModel()
    model.table[:] = float("nan")
    async with running(fake_loaded(model=model)) as (client, _):
        response = await post(client, {"text": SLF, "format": "htk"})
    check_problem(response, 500, "internal")
