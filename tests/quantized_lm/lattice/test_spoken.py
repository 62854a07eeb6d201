from __future__ import annotations

import itertools

import numpy as np
import pytest

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.lattice import Lattice, Ragged
from quantized_lm.lattice.spoken import ArcWeights, speak
from tests.fakes import fake_tokenizer
from tests.quantized_lm.lattice.random_lattices import random_lattice


def chain(*words: list[int], symbols: dict[int, str] | None, am: float = -1.0) -> Lattice:
    count = len(words)
    splits = np.cumsum([0, *map(len, words)]).astype(np.int32)
    return Lattice(
        src=np.arange(count, dtype=np.int32),
        dst=np.arange(1, count + 1, dtype=np.int32),
        words=Ragged(splits, np.array([*itertools.chain(*words)], np.int32)),
        am=np.full(count, am),
        graph=np.full(count, -2.0),
        symbols=symbols,
    )


def test_an_arc_of_several_words_becomes_a_chain_that_keeps_its_score_once() -> None:
    lattice = chain([1, 3, 2], [2], symbols={1: "cat", 2: "dog", 3: "<eps>"})
    spoken = speak(lattice, fake_tokenizer(), ArcWeights(am_scale=2.0, graph_scale=0.5))
    assert spoken.src.tolist() == [0, 1, 2]
    assert spoken.dst.tolist() == [1, 2, 3]
    assert [spoken.words[number] for number in spoken.word] == ["cat", "dog", "dog"]
    assert spoken.score.tolist() == [-3.0, 0.0, -3.0]
    assert spoken.arc.tolist() == [0, 0, 1]


def test_chains_keep_topological_order_in_any_lattice() -> None:
    for seed in range(200):
        spoken = speak(random_lattice(seed), fake_tokenizer(), ArcWeights())
        assert (spoken.src < spoken.dst).all()
        assert (np.diff(spoken.src) >= 0).all()
        assert set(spoken.dst.tolist()) | {0} == set(range(int(spoken.dst.max()) + 1))


def test_bonuses_are_added_per_word_and_per_token() -> None:
    lattice = chain([1], [], symbols={1: "cat"})
    weights = ArcWeights(am_scale=0.0, word_bonus=0.25, token_bonus=0.5)
    num_tokens = len(fake_tokenizer().encode("cat").ids)
    spoken = speak(lattice, fake_tokenizer(), weights)
    assert spoken.score.tolist() == [0.25 + 0.5 * num_tokens, 0.0]
    assert spoken.bonus.tolist() == [0.0, 0.25 + 0.5 * num_tokens]


def test_scale_zero_removes_even_an_infinite_score() -> None:
    lattice = chain([1], symbols={1: "cat"}, am=-np.inf)
    assert speak(lattice, fake_tokenizer(), ArcWeights(am_scale=0.0)).score.tolist() == [0.0]


@pytest.mark.parametrize(
    "weights", [ArcWeights(am_scale=-1.0), ArcWeights(am_scale=-1.0, graph_scale=1.0)]
)
def test_an_infinite_score_cannot_be_turned_around(weights: ArcWeights) -> None:
    lattice = chain([1], [2], symbols={1: "cat", 2: "dog"}, am=-np.inf)
    lattice.graph[1] = -np.inf  # infinities of both signs are no number
    lattice.am[0] = -1.0
    with pytest.raises(LatticeError, match="arc 1 has am score -inf") as refused:
        speak(lattice, fake_tokenizer(), weights)
    assert refused.value.pointer == "/arcs/1"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scores", [[1e308, 1e308], [1e308, 1e308, -1e308, -1e308], [-1e308] * 2])
def test_finite_scores_that_cannot_be_added_up_are_refused(scores: list[float]) -> None:
    lattice = chain(*([1] for _ in scores), symbols={1: "cat"})
    lattice.am[:] = scores
    with pytest.raises(LatticeError, match="too large to be added up") as refused:
        speak(lattice, fake_tokenizer(), ArcWeights())
    assert refused.value.pointer == "/arcs"
    lattice.am[:] = [*scores[:1], *[-np.inf] * (len(scores) - 1)]
    assert speak(lattice, fake_tokenizer(), ArcWeights()).score[0] == scores[0] - 2.0


@pytest.mark.filterwarnings("error")
def test_a_score_that_its_scale_makes_infinite_is_refused() -> None:
    lattice = chain([1], symbols={1: "cat"}, am=-1e308)
    with pytest.raises(LatticeError, match="too large"):
        speak(lattice, fake_tokenizer(), ArcWeights(am_scale=100.0))


def test_a_word_has_one_number_however_many_ids_it_has() -> None:
    lattice = chain([1], [3, 2], [4], symbols={1: "cat", 2: "dog", 3: "cat", 4: "cat"})
    spoken = speak(lattice, fake_tokenizer(), ArcWeights())
    assert spoken.words == ("", "cat", "dog")
    assert spoken.word.tolist() == [1, 1, 2, 1]


def test_words_named_as_silence_are_left_out() -> None:
    lattice = chain([1], symbols={1: "cat"})
    assert speak(lattice, fake_tokenizer(), ArcWeights(), silence={"cat"}).word.tolist() == [0]


def test_ids_without_a_symbol_table_are_refused() -> None:
    with pytest.raises(LatticeError, match="symbol table") as raised:
        speak(chain([1], symbols=None), fake_tokenizer(), ArcWeights())
    assert raised.value.pointer == "/symbols"
