"""The lattice that a search leaves, confidences, and searches that are stopped early."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantized_lm.lattice.confidence import word_confidences
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.spoken import ArcWeights
from quantized_lm.lattice_scoring import (
    LatticeRequest,
    LatticeScores,
    prepare_lattice,
    score_lattices,
)
from quantized_lm.waves import Running, advance
from tests.fakes import TableModel, fake_loaded

from .random_lattices import paths, random_lattice, words_of

LOADED = fake_loaded(model=TableModel(max_tokens=1_000))
WEIGHTS = ArcWeights(am_scale=0.5, graph_scale=0.25, word_bonus=0.5, token_bonus=-0.125)


def searched(seed: int, limits: SearchLimits, lattice: Lattice | None = None) -> LatticeScores:
    """A random lattice after a search."""
    asked = LatticeRequest(lattice or random_lattice(seed), WEIGHTS, lm_scale=0.75, limits=limits)
    return score_lattices([asked], LOADED)[0]


def best_of_each(lattice: Lattice) -> dict[tuple[str, ...], float]:
    """Each word sequence of a lattice and the score of its best path."""
    totals: dict[tuple[str, ...], float] = {}
    for arcs in paths(lattice):
        total = float((lattice.am + lattice.graph)[arcs].sum())
        words = words_of(lattice, arcs)
        totals[words] = max(total, totals.get(words, -np.inf))
    return totals


@pytest.mark.parametrize("limits", [SearchLimits.exact(num_best=3), SearchLimits(seeds=3)])
def test_a_rescored_lattice_has_the_found_sequences_with_their_totals(
    limits: SearchLimits,
) -> None:
    for seed in range(60):
        scores = searched(seed, limits)
        found = {tuple(scores.search.words(one.prefix)): one.total for one in scores.search.found}
        totals = best_of_each(scores.rescored())
        assert totals.keys() == found.keys()
        for words, total in found.items():
            assert totals[words] == pytest.approx(total, abs=1e-5)


def test_a_rescored_lattice_is_cut_to_its_best_sequences() -> None:
    for seed in range(20):
        scores = searched(seed, SearchLimits.exact(num_best=4))
        best = [tuple(scores.search.words(one.prefix)) for one in scores.search.found[:2]]
        assert sorted(best_of_each(scores.rescored(2))) == sorted(best)


def test_arcs_keep_the_attributes_of_the_source_and_say_what_the_lm_said() -> None:
    for seed in range(20):
        source = random_lattice(seed)
        count = np.arange(source.num_arcs)
        source = replace(
            source,
            arc_attributes={"own": count},
            state_attributes={"time_s": np.arange(source.num_states) * 0.5},
            header={"lmscale": "9", "VERSION": "1.0"},
        )
        scores = searched(seed, SearchLimits(), source)
        lattice = scores.rescored(1)
        (best,) = scores.hypotheses
        np.testing.assert_array_equal(lattice.arc_attributes["own"], best.arcs)
        np.testing.assert_array_equal(lattice.am, 0.5 * source.am[best.arcs])
        lm = lattice.arc_attributes["lm"]
        assert isinstance(lm, np.ndarray)
        assert lm.dtype == np.float32
        assert float(lm.sum()) == pytest.approx(best.lm, abs=1e-4)
        assert lattice.state_attributes["time_s"][-1] == 0.5 * source.final
        assert lattice.header == {"VERSION": "1.0"}


def test_a_search_that_is_stopped_at_once_has_the_lattices_own_best() -> None:
    for seed in range(30):
        asked = LatticeRequest(
            random_lattice(seed), WEIGHTS, lm_scale=0.75, limits=SearchLimits(num_best=3)
        )
        running = Running(prepare_lattice(asked, LOADED), LOADED.model)
        running.stop("deadline")
        assert running.is_over
        scores = running.result()
        assert (scores.is_scored, scores.is_exact, scores.cuts) == (False, False, ("deadline",))
        assert [np.isnan(one.lm) for one in scores.hypotheses] == [True] * len(scores.hypotheses)
        (without,) = score_lattices(
            [replace(asked, lm_scale=0.0, limits=SearchLimits.exact(num_best=3))], LOADED
        )
        assert [one.total for one in scores.hypotheses] == pytest.approx(
            [one.total for one in without.hypotheses]
        )
        assert scores.posteriors().sum() == pytest.approx(1.0)
        totals = best_of_each(scores.rescored())
        assert max(totals.values()) == pytest.approx(scores.hypotheses[0].total, abs=1e-5)


def test_a_search_that_is_stopped_between_waves_keeps_what_it_found() -> None:
    asked = LatticeRequest(random_lattice(9), WEIGHTS, 0.75, SearchLimits(seeds=1))
    running = Running(prepare_lattice(asked, LOADED), LOADED.model)
    advance([running], LOADED.model)
    running.stop("deadline")
    scores = running.result()
    assert scores.is_scored
    assert scores.hypotheses[0].lm < 0.0


def test_posteriors_are_a_softmax_of_the_totals() -> None:
    scores = searched(3, SearchLimits.exact(num_best=4))
    totals = np.array([one.total for one in scores.sequences])
    expected = np.exp(2.0 * totals) / np.exp(2.0 * totals).sum()
    np.testing.assert_allclose(scores.posteriors(2.0), expected, rtol=1e-9)
    np.testing.assert_allclose(scores.posteriors(0.0), 1.0 / len(totals))


def test_confidence_is_the_share_of_what_agrees_with_a_word() -> None:
    sequences = [["a", "b", "c"], ["a", "x", "c"], ["a", "c"], ["b", "b", "c"]]
    posteriors = np.array([0.5, 0.25, 0.15, 0.1])
    confidences = word_confidences(sequences[0], sequences, posteriors)
    assert confidences == pytest.approx([0.9, 0.6, 1.0])
    assert word_confidences([], sequences, posteriors) == []
    assert word_confidences(["a"], [["a"], ["b"]], np.array([1.0, 1e-9])) == [1.0]
