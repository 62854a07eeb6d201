"""Lattices of real k2, rescored over HTTP, and what k2 finds in the FSAs that come back."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from tests.k2.conftest import ROOT, RunK2
from tests.k2_env.words import SYMBOLS

TOLERANCE_NATS = 1e-3  # float32 scores of some 50 arcs
ONE = ("ragged", "words", "bare", "words as JSON")


@pytest.fixture(scope="module")
def served(run_k2: RunK2) -> dict[str, Any]:
    """What tests/k2_env/served.py finds with the bundled model behind a free port."""
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"running on (http://[\d.:]+)", line):
                    break
            else:
                pytest.fail("the server did not start")
            rest = threading.Thread(target=process.stderr.read)  # or the pipe fills
            rest.start()
            findings: dict[str, Any] = run_k2("served", found[1])
        finally:
            process.kill()
        rest.join()
    return findings


def text_of(words: list[int]) -> str:
    return " ".join(SYMBOLS[word] for word in words)


@pytest.mark.parametrize("name", ONE)
def test_k2s_shortest_path_is_the_services_best(served: dict[str, Any], name: str) -> None:
    _require_same_best(served[name])


def test_an_fsavec_longer_than_a_request_comes_back_in_its_order(served: dict[str, Any]) -> None:
    assert len(served["many"]) == 18
    for one in served["many"]:
        _require_same_best(one)
    assert len({one["hypotheses"][0][1] for one in served["many"]}) == 18


def _require_same_best(one: dict[str, Any]) -> None:
    text, score, _ = one["hypotheses"][0]
    assert text_of(one["k2"]["best"]) == text
    assert one["k2"]["total"] == pytest.approx(score, abs=TOLERANCE_NATS)


@pytest.mark.parametrize("name", ONE)
def test_random_paths_have_the_scores_of_the_hypotheses(served: dict[str, Any], name: str) -> None:
    sampled = {text_of(words): score for words, score in served[name]["k2"]["random"]}
    hypotheses = {text: score for text, score, _ in served[name]["hypotheses"]}
    both = sampled.keys() & hypotheses.keys()
    assert both
    for text in both:
        assert sampled[text] == pytest.approx(hypotheses[text], abs=TOLERANCE_NATS)
    worst = min(hypotheses.values())
    assert all(
        score <= worst + TOLERANCE_NATS for text, score in sampled.items() if text not in both
    )


@pytest.mark.parametrize("name", ONE)
def test_the_best_path_has_the_parts_of_the_best_score(served: dict[str, Any], name: str) -> None:
    for part in ("lm", "am"):
        of_reply, of_path = served[name][part]
        assert of_path == pytest.approx(of_reply, abs=TOLERANCE_NATS)


def test_an_exact_search_is_at_least_as_good(served: dict[str, Any]) -> None:
    is_exact, score, has_no_fsa = served["exact"]
    assert is_exact
    assert has_no_fsa
    assert score >= served["bare"]["hypotheses"][0][1]


@pytest.mark.parametrize("name", ONE)
def test_the_log_sum_of_all_paths_gives_the_posteriors(served: dict[str, Any], name: str) -> None:
    one = served[name]
    scores = np.array([score for _, score, _ in one["hypotheses"]])
    posteriors = np.array([posterior for *_, posterior in one["hypotheses"]])
    np.testing.assert_allclose(np.exp(scores - one["log_total"]), posteriors, atol=TOLERANCE_NATS)
    assert one["posterior_at_start"] == pytest.approx(1, abs=1e-6)
    assert one["posterior_at_end"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ONE)
def test_the_reply_is_a_valid_lattice_with_what_the_arcs_had(
    served: dict[str, Any], name: str
) -> None:
    for wanted in ("Valid", "TopSortedAndAcyclic", "MaybeAccessible", "MaybeCoaccessible"):
        assert wanted in served[name]["properties"]
    assert {"arcs", "aux_labels", "lm", "lm_scores", "tokens"} <= set(served[name]["attributes"])


def test_both_wire_forms_give_the_same(served: dict[str, Any]) -> None:
    one, other = served["words"], served["words as JSON"]
    assert one["hypotheses"] == other["hypotheses"]
    assert one["k2"]["best"] == other["k2"]["best"]


def test_what_is_wrong_with_a_request_is_an_exception(served: dict[str, Any]) -> None:
    unknown_weight, unknown_word, several = served["refused"]
    assert unknown_weight.startswith("RefusedRequestError: 422 invalid_field: /weights/no_scale")
    assert unknown_word.startswith("LatticeError")
    assert "not in the symbol table" in unknown_word
    assert "has 3 lattices" in several


@pytest.mark.parametrize(
    ("name", "reason"), [("absent", "unavailable"), ("unknown model", "refused")]
)
def test_without_an_answer_the_lattices_own_best_path_stands(
    served: dict[str, Any], name: str, reason: str
) -> None:
    assert served[name] == [[reason], True, True]


def test_a_lattice_without_a_path_does_not_fail_the_others(served: dict[str, Any]) -> None:
    rescored, refusal = served["one is empty"]
    assert rescored == served["bare"]["hypotheses"][0][0]
    assert "no arcs" in refusal
