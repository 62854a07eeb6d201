from __future__ import annotations

import numpy as np
import pytest

from quantized_lm.bench.lattice_comparison import (
    DECODER_LIST,
    LATTICE,
    Candidates,
    Comparison,
    LatticeWeights,
    Spoken,
    compare,
    count_passes,
)
from quantized_lm.errors import DataError
from quantized_lm.lattice.limits import SearchLimits
from tests.fakes import TableModel, fake_loaded
from tests.quantized_lm.lattice.random_lattices import paths, random_lattice, words_of

LOADED = fake_loaded(model=TableModel(max_tokens=1_000))
START = LatticeWeights(0.5, 0.0)


def spoken(seed: int, *, has_list: bool = True) -> Spoken:
    """A lattice whose reference is its longest sequence; its list is its first two."""
    lattice = random_lattice(seed)
    sequences = list(dict.fromkeys(words_of(lattice, arcs) for arcs in paths(lattice)))
    longest = max(sequences, key=len)
    texts = tuple(" ".join(words) for words in sequences[:2]) if has_list else ()
    return Spoken(f"u{seed}", " ".join(longest), lattice, texts, tuple(-1.0 for _ in texts))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(
        [spoken(seed) for seed in range(12)],
        LOADED,
        sizes=(1, 3, 1000),
        limits=SearchLimits.exact(),
        start=START,
    )


def test_every_way_to_rescore_has_a_row(comparison: Comparison) -> None:
    names = [one.name for one in comparison.systems]
    assert names == ["1-best", "3-best", "1000-best", DECODER_LIST, LATTICE]
    assert comparison.words == sum(len(spoken(seed).reference.split()) for seed in range(12))
    assert all(len(one.answers) == 12 for one in comparison.systems)


def test_a_list_of_one_is_the_first_pass(comparison: Comparison) -> None:
    assert comparison.systems[0].errors == comparison.first_pass_errors


def test_an_exact_search_answers_as_the_list_of_all_sequences(comparison: Comparison) -> None:
    everything, lattice = comparison.systems[2], comparison.systems[-1]
    assert everything.answers == lattice.answers
    assert everything.errors == lattice.errors


def test_longer_lists_take_more_steps(comparison: Comparison) -> None:
    one, three, everything = comparison.systems[:3]
    assert one.lm_steps < three.lm_steps < everything.lm_steps
    assert one.lm_steps <= one.tree_nodes


def test_weights_of_a_half_do_not_depend_on_its_own_references() -> None:
    utterances = [spoken(seed) for seed in range(6)]
    limits = SearchLimits.exact()
    one = compare(utterances, LOADED, sizes=(3,), limits=limits, start=START)
    other = [
        Spoken(u.id, "saw saw saw" if k % 2 else u.reference, u.lattice, u.texts, u.am)
        for k, u in enumerate(utterances)
    ]
    two = compare(other, LOADED, sizes=(3,), limits=limits, start=START)
    assert one.weights[1] == two.weights[1]  # of the odd ones, tuned on the even ones


def test_without_lists_of_the_decoder_there_is_no_row_for_them() -> None:
    utterances = [spoken(0), spoken(1, has_list=False)]
    found = compare(utterances, LOADED, sizes=(3,), limits=SearchLimits(), start=START)
    assert [one.name for one in found.systems] == ["3-best", LATTICE]


def test_progress_is_counted() -> None:
    calls: list[None] = []
    utterances = [spoken(seed) for seed in range(4)]
    compare(
        utterances,
        LOADED,
        sizes=(2, 3),
        limits=SearchLimits(),
        start=START,
        done=lambda: calls.append(None),
    )
    assert len(calls) == (count_passes((2, 3)) + 1) * len(utterances)  # and the decoder's list


def test_one_utterance_cannot_be_halved() -> None:
    with pytest.raises(DataError, match="two halves"):
        compare([spoken(0)], LOADED, sizes=(3,), limits=SearchLimits(), start=START)


def test_the_best_candidate_follows_the_weights() -> None:
    features = np.array([[-1.0, -9.0, 2.0], [-3.0, -1.0, 3.0]])
    candidates = Candidates(("a b", "a b c"), features, 0, 0, 0.0)
    assert candidates.best(LatticeWeights(0.0, 0.0)) == "a b"
    assert candidates.best(LatticeWeights(1.0, 0.0)) == "a b c"
    assert candidates.best(LatticeWeights(0.0, 3.0)) == "a b c"
