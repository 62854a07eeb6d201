"""Whatever is sent, the answer is a reply that adds up or a problem, and never a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import ERRORS, HTTP_ERRORS
from service.schemas import MAX_SCORE, MAX_WEIGHT
from tests.service.serving import Caller, Json

CODES = {kind.code for kind in (*ERRORS.values(), *HTTP_ERRORS.values())}
MODELS = st.sampled_from(["tiny", "tiny", "absent"])
TEXTS = st.just("") | st.text(alphabet="thecatsonam, z'\u2019\ud800", max_size=40)
SCORES = st.none() | st.floats(-MAX_SCORE, MAX_SCORE) | st.integers(-9, 9)
WEIGHTS = st.floats(-MAX_WEIGHT, MAX_WEIGHT) | st.sampled_from([0, 1, 0.5])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
HYPOTHESES = st.fixed_dictionaries(
    {"text": TEXTS, "am_score": SCORES},
    optional={
        "graph_score": SCORES,
        "lm_score": SCORES,
        "extra": st.dictionaries(st.sampled_from(["ctc", "a/b", ""]), SCORES, max_size=2),
    },
)
NUMBERS = ("am_scale", "graph_scale", "lm_scale", "word_bonus", "token_bonus", "char_bonus")
WEIGHT_CHOICES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*NUMBERS, "bias", "gnmt_alpha"), WEIGHTS),
        "preset": st.sampled_from(["kaldi", "icefall", "sherpa-onnx", "espnet", "htk"]),
        "parameters": st.dictionaries(st.sampled_from(["weight", "lm_scale"]), WEIGHTS),
        "length_norm": st.sampled_from(["none", "tokens", "words", "gnmt"]),
        "length_offset": st.integers(-1, 1001),
        "mode": st.sampled_from(["log-linear", "linear"]),
        "extra": st.dictionaries(st.sampled_from(["ctc", "a/b"]), WEIGHTS, max_size=2),
    },
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "n_best": st.none() | st.integers(0, 3),
        "return_tokens": st.booleans(),
        "return_words": st.booleans(),
        "return_posterior": st.none() | st.booleans(),
        "posterior_scale": st.floats(0.0, MAX_WEIGHT),
        "oov": st.sampled_from(["score-unk", "error"]),
    },
)
UTTERANCES = st.fixed_dictionaries(
    {"hypotheses": st.lists(HYPOTHESES, min_size=1, max_size=4)},
    optional={
        "id": st.text(max_size=5),
        "final": st.booleans(),
        "context": st.fixed_dictionaries({"text": st.lists(TEXTS, max_size=2)}),
    },
)
LMS = st.fixed_dictionaries({"model": MODELS}, optional={"lm_scale": WEIGHTS})
REQUESTS = st.fixed_dictionaries(
    {"utterances": st.lists(UTTERANCES, min_size=1, max_size=3)},
    optional={
        "model": MODELS,
        "lms": st.lists(LMS, max_size=2),
        "weights": WEIGHT_CHOICES,
        "options": OPTIONS,
    },
)
quick = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def check(response: httpx.Response) -> Json | None:
    """The reply, or None where a well-formed problem came back."""
    # A deadline of a millisecond may be over before a lattice is read.
    assert response.status_code < 500 or response.status_code == 504, response.text
    body: Json = response.json()
    if response.status_code == 200:
        return body
    assert body["code"] in CODES
    assert body["status"] == response.status_code
    return None


def total_of(hypothesis: Json, weights: Json) -> float:
    """The score of one hypothesis of a log-linear reply, before length normalization."""
    components = hypothesis["components"]
    pairs = [
        (weights["am_scale"], components["am"]),
        (weights["graph_scale"], components["graph"]),
        *((scale, components["lm"][name]) for name, scale in weights["lm_scales"].items()),
        *((scale, components["extra"].get(name)) for name, scale in weights["extra"].items()),
        (weights["word_bonus"], hypothesis["num_words"]),
        (weights["token_bonus"], hypothesis["num_tokens"]),
        (weights["char_bonus"], hypothesis["num_chars"]),
        (weights["bias"], 1.0),
    ]
    return float(sum(weight * value for weight, value in pairs if weight != 0.0))


def length_of(hypothesis: Json, weights: Json) -> float:
    """What the total is divided by."""
    offset = weights["length_offset"]
    tokens = hypothesis["num_tokens"] + offset
    return float(
        {
            "none": 1.0,
            "tokens": max(tokens, 1),
            "words": max(hypothesis["num_words"] + offset, 1),
            "gnmt": 1.0,
        }[weights["length_norm"]]
    )


@quick
@given(body=REQUESTS)
def test_a_request_of_the_right_shape_is_ranked_or_refused(caller: Caller, body: Json) -> None:
    reply = check(caller.post("/v1/rescore", json.dumps(body).encode()))
    if reply is None:
        return
    assert len(reply["results"]) == len(body["utterances"])
    for result in reply["results"]:
        if "error" in result:
            assert result["error"]["code"] in CODES
            assert result["error"]["status"] < 500
            continue
        scores = [entry["score"] for entry in result["hypotheses"]]
        assert scores == sorted(scores, reverse=True)
        weights = reply["weights"]
        if weights["mode"] == "linear" or weights["length_norm"] == "gnmt":
            continue
        for entry in result["hypotheses"]:
            expected = total_of(entry, weights) / length_of(entry, weights)
            assert entry["score"] == pytest.approx(expected, rel=1e-9, abs=1e-2)


@quick
@given(body=REQUESTS, path=st.lists(st.integers(0, 5), max_size=6), value=ANYTHING)
def test_a_request_with_one_value_replaced_is_never_a_500(
    caller: Caller, body: Json, path: list[int], value: Any
) -> None:
    node: Any = body
    for step in path:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = keys[step % len(keys)]
        if not isinstance(node[key], dict | list) or step == path[-1]:
            node[key] = value
            break
        node = node[key]
    check(caller.post("/v1/rescore", json.dumps(body).encode()))


@quick
@given(body=ANYTHING)
def test_any_json_is_never_a_500(caller: Caller, body: Any) -> None:
    for path in ("/v1/rescore", "/v1/score"):
        check(caller.post(path, json.dumps(body).encode()))


@quick
@given(content=st.binary(max_size=200))
def test_any_bytes_are_never_a_500(caller: Caller, content: bytes) -> None:
    check(caller.post("/v1/rescore", content))


@quick
@given(
    body=st.fixed_dictionaries(
        {"texts": st.lists(TEXTS, min_size=1, max_size=4)},
        optional={"final": st.booleans(), "model": MODELS, "return_words": st.booleans()},
    )
)
def test_any_texts_are_scored_or_refused(caller: Caller, body: Json) -> None:
    check(caller.post("/v1/score", json.dumps(body).encode()))
