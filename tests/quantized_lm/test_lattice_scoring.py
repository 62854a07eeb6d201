from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantized_lm.lattice.lattice import Lattice, Ragged
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.spoken import ArcWeights
from quantized_lm.lattice_scoring import (
    LatticeRequest,
    LatticeScores,
    prepare_lattice,
    score_lattices,
)
from quantized_lm.scoring import ScoreRequest, score_lists
from quantized_lm.waves import Running, advance
from tests.fakes import TableModel, fake_loaded
from tests.quantized_lm.lattice.random_lattices import random_lattice

WEIGHTS = ArcWeights(am_scale=1.3, graph_scale=0.4, word_bonus=-0.2, token_bonus=0.05)
LOADED = fake_loaded(model=TableModel(max_tokens=1_000))


def request(seed: int, **fields: object) -> LatticeRequest:
    asked = LatticeRequest(
        random_lattice(seed), WEIGHTS, lm_scale=0.6, limits=SearchLimits.exact(num_best=4)
    )
    return replace(asked, **fields)  # type: ignore[arg-type]


def totals(scores: LatticeScores) -> list[float]:
    return [one.total for one in scores.hypotheses]


def test_the_scores_of_a_hypothesis_add_up_to_its_total() -> None:
    for seed in range(40):
        (scores,) = score_lattices([request(seed)], LOADED)
        for one in scores.hypotheses:
            total = 1.3 * one.am + 0.4 * one.graph + 0.6 * one.lm
            total += -0.2 * one.num_words + 0.05 * one.num_tokens
            assert one.total == pytest.approx(total, abs=1e-5)


def test_a_hypothesis_has_the_score_that_its_text_has_in_a_list() -> None:
    for seed in range(40):
        (scores,) = score_lattices([request(seed, context=("the cat",))], LOADED)
        texts = tuple(one.text for one in scores.hypotheses)
        (as_list,) = score_lists([ScoreRequest(texts, context=("the cat",))], LOADED)
        np.testing.assert_allclose(
            [one.lm for one in scores.hypotheses], as_list.log_prob, atol=1e-4
        )
        for one, text in zip(scores.hypotheses, as_list.scores, strict=True):
            assert one.num_tokens == text.num_tokens
            assert one.num_words == len(text.words)


def test_symbols_among_words_count_as_little_in_a_list_as_in_a_lattice() -> None:
    symbols = ["the", "[noise]", "cat", "<unk>", "<eps>", "!SIL", "sat", "</s>"]
    lattice = Lattice(
        src=np.arange(8, dtype=np.int32),
        dst=np.arange(1, 9, dtype=np.int32),
        words=Ragged(np.arange(9, dtype=np.int32), np.arange(1, 9, dtype=np.int32)),
        am=np.zeros(8),
        graph=np.zeros(8),
        symbols=dict(enumerate(symbols, start=1)),
    )
    (of_lattice,) = score_lattices([LatticeRequest(lattice, ArcWeights(), 1.0)], LOADED)
    (searched,) = of_lattice.hypotheses
    (listed,) = score_lists([ScoreRequest((" ".join(symbols),))], LOADED)
    assert listed.log_prob[0] == pytest.approx(searched.lm, abs=1e-4)
    assert listed.scores[0].num_tokens == searched.num_tokens
    assert len(listed.scores[0].words) == searched.num_words == 4
    assert listed.oov == {0: ("<unk>",)}
    assert searched.oov == ("<unk>",)


def test_lattices_scored_together_get_what_they_get_alone() -> None:
    requests = [request(seed) for seed in range(8)]
    together = score_lattices(requests, LOADED)
    for one, alone in zip(together, requests, strict=True):
        assert totals(one) == pytest.approx(totals(score_lattices([alone], LOADED)[0]), abs=1e-5)


def test_every_word_has_its_arc() -> None:
    for seed in range(40):
        asked = request(seed)
        (scores,) = score_lattices([asked], LOADED)
        lattice = asked.lattice
        assert lattice.symbols is not None
        for one in scores.hypotheses:
            assert lattice.src[one.arcs[0]] == 0
            assert lattice.dst[one.arcs[-1]] == lattice.final
            assert (lattice.dst[one.arcs[:-1]] == lattice.src[one.arcs[1:]]).all()
            for word, arc in zip(one.words, one.word_arcs.tolist(), strict=True):
                assert word in [lattice.symbols[i] for i in lattice.words.row(arc).tolist()]


@pytest.mark.parametrize("num_best", [1, 3])
def test_the_first_pass_is_the_best_by_the_lattice_whatever_the_lm_prefers(num_best: int) -> None:
    changed = 0
    for seed in range(40):
        limits = SearchLimits(num_best, seeds=2, order=2)
        asked = request(seed, lm_scale=2.0, limits=limits)
        (scores,) = score_lattices([asked], LOADED)
        (alone,) = score_lattices([replace(asked, lm_scale=0.0, limits=SearchLimits())], LOADED)
        first = scores.detail(scores.sequences[scores.first_pass])
        assert first.words == alone.hypotheses[0].words
        assert scores.by_lattice[scores.first_pass] == pytest.approx(scores.by_lattice.max())
        changed += scores.first_pass != 0
    assert changed


def test_a_best_that_is_too_long_to_score_stays_the_best() -> None:
    short = fake_loaded(model=TableModel(max_tokens=4))
    too_long = scored = 0
    for seed in range(40):
        asked = request(seed)
        (scores,) = score_lattices([asked], short)
        (alone,) = score_lattices([replace(asked, lm_scale=0.0)], LOADED)
        first = scores.detail(scores.sequences[scores.first_pass])
        assert first.words == alone.hypotheses[0].words
        if scores.is_scored:
            scored += 1
            continue
        too_long += 1
        assert scores.first_pass == 0
        assert scores.degraded == ("max_tokens",)
        assert not scores.is_exact
        assert totals(scores) == pytest.approx(totals(alone))
        assert len(scores.rescored().src)
    assert too_long
    assert scored


def test_usage_counts_what_was_done() -> None:
    (scores,) = score_lattices([request(5)], LOADED)
    usage = scores.usage
    assert (usage.arcs, usage.states) == (random_lattice(5).num_arcs, random_lattice(5).num_states)
    assert 0 < usage.lm_steps <= usage.tree_nodes
    assert usage.waves >= 1
    assert usage.sequences == len(scores.search.found) >= len(scores.hypotheses)
    assert scores.is_exact
    assert scores.cuts == ()


def test_a_search_can_be_stopped_between_two_waves() -> None:
    prepared = prepare_lattice(request(11, limits=SearchLimits(seeds=1, order=None)), LOADED)
    running = Running(prepared, LOADED.model)
    advance([running], LOADED.model)
    if not running.is_over:
        running.stop("deadline")
    assert running.is_over
    assert running.result().hypotheses


def test_an_open_end_costs_no_end_of_sentence() -> None:
    asked = request(2)
    closed, opened = score_lattices([asked, replace(asked, final=False)], LOADED)
    texts = tuple(one.text for one in opened.hypotheses)
    (as_list,) = score_lists([ScoreRequest(texts, final=False)], LOADED)
    np.testing.assert_allclose([one.lm for one in opened.hypotheses], as_list.log_prob, atol=1e-4)
    assert totals(closed) != totals(opened)
