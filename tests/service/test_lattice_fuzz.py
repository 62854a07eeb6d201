"""Whatever lattice is sent, the answer is a reply or a problem, and never a 500."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quantized_lm.lattice.formats import LATTICE_FORMATS
from tests.quantized_lm.lattice.random_lattices import random_lattice
from tests.service.serving import Caller, Json, lattice_entry
from tests.service.test_fuzz import ANYTHING, check, quick

PATH = "/v1/rescore/lattice"
RAW_PATH = f"{PATH}?return_lattice=1&n_best=3&max_lm_steps=200"
MEDIA_TYPES = sorted({one.media_type for one in LATTICE_FORMATS.values()})
NAMES = tuple(LATTICE_FORMATS)
FLOATS = st.floats(width=32) | st.sampled_from([0, -1, "-inf", "inf", 1e300])
ARCS = st.lists(
    st.tuples(st.integers(-1, 5), st.integers(-1, 5), st.integers(-2, 4), FLOATS).map(list),
    max_size=8,
)
LATTICES = st.fixed_dictionaries(
    {"arcs": ARCS | ANYTHING},
    optional={
        "aux_labels": st.lists(st.integers(-1, 3) | st.lists(st.integers(0, 3))) | ANYTHING,
        "lm_scores": st.lists(FLOATS) | ANYTHING,
        "symbols": st.just(["<eps>", "the", "cat", "sat", "a"]) | ANYTHING,
        "own": ANYTHING,
    },
)
GOOD = st.sampled_from([lattice_entry(random_lattice(seed)) for seed in range(9)])
ENTRIES = GOOD | st.fixed_dictionaries(
    {},
    optional={
        "lattice": LATTICES,
        "text": st.text(max_size=20) | st.just("0 1 the -1\n1\n"),
        "format": st.sampled_from([*NAMES, "x"]),
        "symbols": ANYTHING,
        "final": st.booleans(),
        "id": ANYTHING,
    },
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "n_best": st.integers(0, 4),
        "return_lattice": st.booleans(),
        "return_words": st.booleans(),
        "posterior_scale": st.floats(0, 1e6),
        "deadline_ms": st.floats(1e-6, 1e3),
        "order": st.none() | st.integers(1, 4),
        "beam": st.none() | st.floats(0, 10),
        "max_lm_steps": st.integers(1, 50),
        "silence": st.lists(st.sampled_from(["the", ""])),
    },
)


@quick
@given(
    lattices=st.lists(ENTRIES, min_size=1, max_size=3),
    options=OPTIONS,
    weights=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("am_scale", "graph_scale", "lm_scale", "word_bonus"), st.floats(-1e6, 1e6)
        ),
    ),
)
def test_any_lattices_are_rescored_or_refused(
    caller: Caller, lattices: list[Any], options: Json, weights: Json
) -> None:
    body = {"lattices": lattices, "options": options, "weights": weights}
    reply = check(caller.post(PATH, json.dumps(body).encode()))
    for result in reply["results"] if reply is not None else []:
        if "error" in result:
            assert result["error"]["status"] in {*range(400, 500), 504}
            continue
        scores = [hypothesis["score"] for hypothesis in result["hypotheses"]]
        assert scores
        assert scores == sorted(scores, reverse=True)
        assert sum(one["posterior"] for one in result["hypotheses"]) < 1.0 + 1e-9


@quick
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 20),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), max_size=4),
)
def test_a_damaged_lattice_is_rescored_or_refused(
    caller: Caller, name: str, seed: int, edits: list[tuple[int, bytes]]
) -> None:
    one = LATTICE_FORMATS[name]
    source = random_lattice(seed)
    content = one.write([replace(source, utterance="u1")])
    for at, piece in edits:
        place = at % len(content)
        content = content[:place] + piece + content[place + 1 :]
    check(caller.post(RAW_PATH, content, one.media_type))


@quick
@given(content=st.binary(max_size=100), media_type=st.sampled_from(MEDIA_TYPES))
def test_any_bytes_of_any_type_are_never_a_500(
    caller: Caller, content: bytes, media_type: str
) -> None:
    check(caller.post(RAW_PATH, content, media_type))


@quick
@given(body=ANYTHING)
def test_any_json_is_never_a_500(caller: Caller, body: Any) -> None:
    check(caller.post(PATH, json.dumps(body).encode()))
