"""Rescored lines: what is written can be read back, in the decoder's order."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from quantized_lm.combine import Ranking, Weights, combine
from quantized_lm.errors import DataError
from quantized_lm.nbest import Hypothesis, Utterance
from quantized_lm.scored import LmColumn, components_of, join, read_scored, result_record

UTTERANCE = Utterance(
    "u1", (Hypothesis("a b", -1.0, -5.0, {"ctc": -0.5}), Hypothesis("c", -2.0)), ref="c"
)
LMS = LmColumn({"en": [-9.0, -3.0]}, num_words=[2, 1], num_tokens=[3, 2], oov=[["b"], []])


def line() -> dict[str, object]:
    ranking = combine(components_of(join(UTTERANCE, LMS)), Weights(lm_scales={"en": 0.5}))
    return result_record(UTTERANCE, LMS, ranking)


def test_a_line_is_an_entry_of_the_services_results_and_ref() -> None:
    record = line()
    assert (record["id"], record["changed"], record["degraded"], record["ref"]) == (
        "u1",
        True,
        [],
        "c",
    )
    entries = record["hypotheses"]
    assert isinstance(entries, list)
    assert entries[0] == {
        "rank": 1,
        "input_rank": 2,
        "text": "c",
        "score": -3.5,
        "posterior": pytest.approx(1 / (1 + math.exp(-2.0))),
        "components": {"am": -2.0, "graph": None, "lm": {"en": -3.0}, "extra": {}},
        "num_words": 1,
        "num_tokens": 2,
        "num_chars": 1,
        "oov": [],
    }
    assert entries[1]["oov"] == ["b"]


def test_a_written_line_reads_back_with_every_score(tmp_path: Path) -> None:
    path = tmp_path / "scored.jsonl"
    path.write_text(json.dumps(line()) + "\n")
    (utterance,) = read_scored(path)
    assert utterance.hypotheses == join(UTTERANCE, LMS)
    assert (utterance.id, utterance.ref, utterance.order) == ("u1", "c", (1, 0))


def test_columns_mark_what_some_hypotheses_lack() -> None:
    components = components_of(join(UTTERANCE, LMS))
    assert components.am is not None
    assert components.graph is not None
    assert components.am.tolist() == [-1.0, -2.0]
    assert np.isnan(components.graph).tolist() == [False, True]
    assert components.words.tolist() == [2, 1]
    assert components.tokens.tolist() == [3, 2]
    assert components.chars.tolist() == [3, 1]


def test_minus_infinity_is_written_as_null() -> None:
    ranking = Ranking(np.array([-np.inf, -1.0]), np.array([1, 0]), np.array([0.0, 1.0]))
    entries = result_record(Utterance("u", UTTERANCE.hypotheses), LMS, ranking)["hypotheses"]
    assert isinstance(entries, list)
    assert entries[1]["score"] is None
    json.dumps(entries, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyps": []}, "/hyps: is an n-best list without LM scores"),
        ({"hypotheses": [{"input_rank": 1}]}, "/hypotheses/0/components: is None"),
        ({"hypotheses": [{"input_rank": 2}]}, "input ranks are"),
        ({"hypotheses": [{"input_rank": True}]}, "/hypotheses/0/input_rank: is True"),
    ],
)
def test_lines_that_rescore_did_not_write_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "scored.jsonl"
    path.write_text(json.dumps({**line(), **change}))
    with pytest.raises(DataError, match=message):
        list(read_scored(path))
