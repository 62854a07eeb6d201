"""Pooled errors, oracle, and the published numbers of real lists."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from quantized_lm.nbest import Utterance, read_utterances
from quantized_lm.wer import WordErrors, error_counts, oracle, pooled, slot_errors, spelling_remark

REAL = "ls_test_clean.w2v2_base960h_4gram.jsonl.gz"


def best(utterances: list[Utterance]) -> list[str]:
    return [
        u.hypotheses[int(np.argmax(np.array([h.am_score for h in u.hypotheses], float)))].text
        for u in utterances
    ]


def test_errors_are_pooled_over_the_set() -> None:
    counts = pooled([("a b c", "a x c d"), ("e f", "f"), ("", "")])
    assert counts == WordErrors(1, 1, 1, words=5, utterances=3)
    assert counts.errors == 3
    assert counts.rate == pytest.approx(0.6)


def test_a_set_without_reference_words_has_no_rate() -> None:
    assert math.isnan(pooled([("", "a")]).rate)


def test_errors_of_spelling_alone_are_remarked() -> None:
    remark = spelling_remark(["A B C", "D"], ["a b, x", "[noise] d"])
    assert remark.startswith("the first pass has 5 word errors, and 1 without case, punctuation")
    assert spelling_remark(["a b c"], ["a b x"]) == ""
    assert spelling_remark(["a B c d"], ["a b x d"]) == ""  # half of them is no rule
    assert spelling_remark(["a"], ["a"]) == ""
    assert spelling_remark(["\u0915\u093f"], ["\u0915\u0940"]) == ""  # vowel signs are said


def test_equal_texts_cost_the_same_and_the_oracle_is_the_first_of_equals() -> None:
    texts = ["a b", "x c", "a b", "a c"]
    assert error_counts("a c", texts).tolist() == [1, 1, 1, 0]
    assert oracle("a c", texts) == 3
    assert oracle("a c", texts[:3]) == 0


def test_slots_say_where_the_errors_are() -> None:
    assert slot_errors("a b c", "a x x c") in ([0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0])
    assert slot_errors("a b c", "a c") == [0, 0, 0, 1, 0, 0, 0]
    assert slot_errors("", "a b") == [2]


def test_real_lists_have_the_published_error_rates(shared_data: Path) -> None:
    path = shared_data / "nbest" / REAL
    by_am, by_total = (list(read_utterances(path, first_pass=field)) for field in ("am", "total"))
    refs = [str(utterance.ref) for utterance in by_am]
    rates = [pooled(zip(refs, best(lists), strict=True)).rate for lists in (by_am, by_total)]
    texts = [[hypothesis.text for hypothesis in u.hypotheses] for u in by_am]
    best_possible = pooled(
        (ref, own[oracle(ref, own)]) for ref, own in zip(refs, texts, strict=True)
    )
    assert [round(100 * rate, 2) for rate in (*rates, best_possible.rate)] == [2.91, 2.59, 1.24]
