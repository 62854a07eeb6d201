from __future__ import annotations

import numpy as np
import pytest

from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.spoken import ArcWeights, SpokenLattice, speak
from quantized_lm.ops._cpu import WordPrefixes
from tests.fakes import fake_tokenizer
from tests.quantized_lm.lattice.random_lattices import paths, random_lattice, words_of

ENDLESS = 2**62
WEIGHTS = ArcWeights(am_scale=1.2, graph_scale=0.5)


def sequences_of(lattice: Lattice) -> dict[tuple[str, ...], float]:
    """The score of each word sequence: that of its best path."""
    own = WEIGHTS.am_scale * lattice.am + WEIGHTS.graph_scale * lattice.graph
    best: dict[tuple[str, ...], float] = {}
    for arcs in paths(lattice):
        words, score = words_of(lattice, arcs), float(own[arcs].sum())
        best[words] = max(best.get(words, -np.inf), score)
    return best


def prefixes_of(spoken: SpokenLattice) -> WordPrefixes:
    return WordPrefixes(spoken.src, spoken.dst, spoken.word, spoken.score)


def words_at(prefixes: WordPrefixes, spoken: SpokenLattice, prefix: int) -> tuple[str, ...]:
    return tuple(spoken.words[number] for number in prefixes.words(prefix).tolist())


def test_the_k_best_are_those_of_all_paths_in_order_each_once() -> None:
    for seed in range(200):
        lattice = random_lattice(seed)
        spoken = speak(lattice, fake_tokenizer(), WEIGHTS)
        expected = sequences_of(lattice)
        prefixes = prefixes_of(spoken)
        best = prefixes.best(ENDLESS, ENDLESS).tolist()
        found = [words_at(prefixes, spoken, prefix) for prefix in best]
        assert len(set(found)) == len(found) == len(expected)
        scores = [prefixes.end_score(prefix) for prefix in best]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, [expected[words] for words in found], atol=1e-9)
        few = prefixes_of(spoken)
        assert few.best(3, ENDLESS).tolist() == best[:3]


def test_the_path_of_a_sequence_says_its_words_and_has_its_score() -> None:
    for seed in range(50):
        spoken = speak(random_lattice(seed), fake_tokenizer(), WEIGHTS)
        prefixes = prefixes_of(spoken)
        for prefix in prefixes.best(20, ENDLESS).tolist():
            path = prefixes.path(prefix)
            assert spoken.src[path[0]] == 0
            assert (spoken.dst[path[:-1]] == spoken.src[path[1:]]).all()
            numbers = spoken.word[path]
            assert numbers[numbers > 0].tolist() == prefixes.words(prefix).tolist()
            assert spoken.score[path].sum() == pytest.approx(prefixes.end_score(prefix))


def test_a_bound_is_the_best_that_a_prefix_can_become() -> None:
    for seed in range(50):
        lattice = random_lattice(seed)
        spoken = speak(lattice, fake_tokenizer(), WEIGHTS)
        prefixes = prefixes_of(spoken)
        expected = sequences_of(lattice)
        ends = prefixes.best(ENDLESS, ENDLESS).tolist()
        for prefix in range(len(prefixes)):
            words = words_at(prefixes, spoken, prefix)
            best = max(
                expected[words_at(prefixes, spoken, end)]
                for end in ends
                if words_at(prefixes, spoken, end)[: len(words)] == words
            )
            (bound,) = prefixes.bounds(np.array([prefix], np.int32))
            assert bound == pytest.approx(best)


def test_what_is_expected_counts_the_words_to_come() -> None:
    spoken = speak(random_lattice(1), fake_tokenizer(), WEIGHTS)
    prefixes = prefixes_of(spoken)
    costs = np.full(len(spoken.words), -100.0)
    prefixes.expect(costs)
    root = np.zeros(1, np.int32)
    best = max(
        prefixes.end_score(prefix) - 100.0 * len(prefixes.words(prefix))
        for prefix in prefixes.best(ENDLESS, ENDLESS).tolist()
    )
    assert prefixes.expected(root)[0] == pytest.approx(best)
    assert prefixes.scores_to_end(costs)[0] == pytest.approx(best)


def diamond() -> SpokenLattice:
    """Two ways to one state: "a x" for -1 and "b x" for -2; then "y"."""
    return SpokenLattice(
        src=np.array([0, 0, 1, 2, 3], np.int32),
        dst=np.array([1, 2, 3, 3, 4], np.int32),
        word=np.array([1, 2, 3, 3, 4], np.int32),
        score=np.array([-1.0, -2.0, 0.0, 0.0, 0.0]),
        arc=np.arange(5, dtype=np.int32),
        words=("", "a", "b", "x", "y"),
        pieces=((),) * 5,
        num_words=(1,) * 5,
        bonus=np.zeros(5),
        oov=frozenset(),
    )


def grown(prefixes: WordPrefixes) -> tuple[int, int]:
    """The prefixes "a x" and "b x"."""
    _, children, _ = prefixes.grow(0)
    return tuple(int(prefixes.grow(child)[1][0]) for child in children.tolist())  # type: ignore[return-value]


@pytest.mark.parametrize("order", [2, 3])
def test_of_merged_prefixes_the_better_one_goes_on(order: int) -> None:
    prefixes = prefixes_of(diamond())
    first, second = grown(prefixes)
    both = np.array([first, second], np.int32)
    lm = np.array([-5.0, -1.0])  # with the LM the second is better
    lost = prefixes.merge(both, lm, order)
    assert lost == (1 if order == 2 else 0)
    bounds = prefixes.bounds(both).tolist()
    assert bounds == ([-np.inf, -2.0] if order == 2 else [-1.0, -2.0])


def test_prefixes_in_different_states_are_not_merged() -> None:
    spoken = diamond()
    apart = np.array([1, 2, 3, 4, 5], np.int32)  # "b x" now ends in a state of its own
    src = np.array([0, 0, 1, 2, 3, 4], np.int32)
    prefixes = WordPrefixes(
        src, np.append(apart, 5).astype(np.int32), np.append(spoken.word, 4).astype(np.int32),
        np.append(spoken.score, 0.0),
    )  # fmt: skip
    both = np.array(grown(prefixes), np.int32)
    assert prefixes.merge(both, np.array([-5.0, -1.0]), 2) == 0
    assert prefixes.bounds(both).tolist() == [-1.0, -2.0]


def test_to_merge_twice_changes_nothing() -> None:
    prefixes = prefixes_of(diamond())
    first, _ = grown(prefixes)
    one = np.array([first], np.int32)
    assert prefixes.merge(one, np.zeros(1), 2) == prefixes.merge(one, np.zeros(1), 2) == 0
    assert prefixes.bounds(one).tolist() == [-1.0]


def test_the_k_best_stop_at_a_number_of_arcs() -> None:
    spoken = speak(random_lattice(3, max_states=7, max_extra=10), fake_tokenizer(), WEIGHTS)
    prefixes = prefixes_of(spoken)
    everything = len(prefixes_of(spoken).best(ENDLESS, ENDLESS))
    assert len(prefixes.best(ENDLESS, 1)) < everything


def test_impossible_arcs_are_on_no_path() -> None:
    spoken = diamond()
    spoken.score[0] = -np.inf
    prefixes = prefixes_of(spoken)
    (only,) = prefixes.best(ENDLESS, ENDLESS).tolist()
    assert words_at(prefixes, spoken, only) == ("b", "x", "y")


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("src", [0, 1, 0, 2, 3], "src descends"),
        ("dst", [1, 2, 1, 3, 4], "an arc goes back"),
        ("dst", [1, 2, 3, 3, 6], "more states than arcs connect"),
        ("dst", [1, 2, 3, 3, 2**31 - 1], "more states than arcs connect"),
        ("word", [1, -2, 3, 3, 4], "a word is negative"),
    ],
)
def test_arcs_that_are_no_lattice_are_refused(field: str, values: list[int], message: str) -> None:
    arrays = {name: getattr(diamond(), name) for name in ("src", "dst", "word", "score")}
    arrays[field] = np.array(values, np.int32)
    with pytest.raises(ValueError, match=message):
        WordPrefixes(**arrays)
    arrays = {name: getattr(diamond(), name) for name in ("src", "dst", "word", "score")}
    arrays["score"][2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        WordPrefixes(**arrays)


def test_unknown_prefixes_are_refused() -> None:
    prefixes = prefixes_of(diamond())
    for unknown in (-1, 1, 2**31 - 1):
        with pytest.raises(ValueError, match="there is no prefix"):
            prefixes.grow(unknown)
        with pytest.raises(ValueError, match="there is no prefix"):
            prefixes.bounds(np.array([unknown], np.int32))


@pytest.mark.parametrize("score", [0.0, -0.1, -1.0 / 3.0, 1e6 / 7.0])
def test_a_lattice_whose_paths_all_score_alike_is_not_followed_in_its_whole_width(
    score: float,
) -> None:
    length, width = 40, 6
    src = np.repeat(np.arange(length, dtype=np.int32), width)
    word = 1 + np.tile(np.arange(width, dtype=np.int32), length)
    prefixes = WordPrefixes(src, src + 1, word, np.full(length * width, score))
    assert len(prefixes.best(10, 1_000_000)) == 10
    assert prefixes.num_followed < 100 * length * width
