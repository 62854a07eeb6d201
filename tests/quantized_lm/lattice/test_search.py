from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantized_lm.errors import InputError
from quantized_lm.lattice.lattice import Lattice, Ragged
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.search import LatticeSearch
from quantized_lm.lattice.spoken import ArcWeights, SpokenLattice, speak
from tests.fakes import TableModel, fake_tokenizer
from tests.quantized_lm.lattice.random_lattices import paths, random_lattice, words_of

WEIGHTS = ArcWeights(am_scale=1.2, graph_scale=-0.5, word_bonus=-0.3, token_bonus=0.1)
LM_SCALE = 0.7
LONG = 1_000
UNLIMITED = SearchLimits(seeds=1, order=None, patience=None)


def run(
    spoken: SpokenLattice,
    limits: SearchLimits,
    *,
    lm_scale: float = LM_SCALE,
    num_context: int = 0,
    max_tokens: int = LONG,
) -> LatticeSearch:
    search = LatticeSearch(
        spoken, lm_scale=lm_scale, limits=limits, num_context=num_context, max_tokens=max_tokens
    )
    model = TableModel()
    state = model.new_state(range(5, 5 + num_context))
    while (wave := search.next_wave()) is not None:
        search.learn(model.extend([state], [wave.parents], [wave.tokens])[0])
    return search


def lm_of(words: tuple[str, ...], context: int = 0) -> float:
    """Log P of a sequence and its `</s>`, token after token."""
    model, tokens = TableModel(), [*fake_tokenizer().encode(" ".join(words)).ids, 0]
    state = model.new_state(range(5, 5 + context))
    parents = np.arange(context, context + len(tokens), dtype=np.int32)
    return float(model.extend([state], [parents], [np.array(tokens, np.int32)])[0].sum())


def all_totals(
    lattice: Lattice, *, lm_scale: float = LM_SCALE, context: int = 0
) -> dict[tuple[str, ...], float]:
    """Every word sequence and its total: paths, bonuses and LM by the formula."""
    own = WEIGHTS.am_scale * lattice.am + WEIGHTS.graph_scale * lattice.graph
    best: dict[tuple[str, ...], float] = {}
    for arcs in paths(lattice):
        words, score = words_of(lattice, arcs), float(own[arcs].sum())
        best[words] = max(best.get(words, -np.inf), score)
    tokenizer = fake_tokenizer()
    totals = {}
    for words, score in best.items():
        encoding = tokenizer.encode(" ".join(words))
        bonus = WEIGHTS.word_bonus * len(encoding.words) + WEIGHTS.token_bonus * len(encoding.ids)
        totals[words] = score + bonus + lm_scale * lm_of(words, context)
    return totals


def assert_best(search: LatticeSearch, totals: dict[tuple[str, ...], float], count: int) -> None:
    assert search.is_exact
    ranked = sorted(totals.values(), reverse=True)[:count]
    found = search.found[: len(ranked)]
    np.testing.assert_allclose([one.total for one in found], ranked, atol=1e-4)
    for one in found:
        assert totals[tuple(search.words(one.prefix))] == pytest.approx(one.total, abs=1e-4)


@pytest.mark.parametrize("num_best", [1, 3])
def test_without_merging_the_search_equals_enumeration(num_best: int) -> None:
    for seed in range(200):
        lattice = random_lattice(seed)
        spoken = speak(lattice, fake_tokenizer(), WEIGHTS)
        totals = all_totals(lattice)
        assert_best(run(spoken, SearchLimits.exact(num_best=num_best)), totals, num_best)
        assert_best(run(spoken, UNLIMITED), totals, 1)
        # To find the seeds many prefixes are grown that are on the way to none of them.
        few = SearchLimits(num_best, seeds=num_best, order=None, patience=None)
        assert_best(run(spoken, few), totals, num_best)


def test_what_was_grown_for_another_reason_is_searched_like_the_rest() -> None:
    for seed in range(30):
        lattice = random_lattice(seed)
        spoken = speak(lattice, fake_tokenizer(), WEIGHTS)
        search = LatticeSearch(spoken, lm_scale=LM_SCALE, limits=UNLIMITED, max_tokens=LONG)
        assert search.best_by_lattice(1_000)  # which grows every prefix
        model = TableModel()
        state = model.new_state()
        while (wave := search.next_wave()) is not None:
            search.learn(model.extend([state], [wave.parents], [wave.tokens])[0])
        assert_best(search, all_totals(lattice), 1)


def test_what_was_grown_to_find_seeds_is_searched_like_the_rest() -> None:
    spoken = ladder(5, width=4)
    limits = SearchLimits(num_best=30, seeds=200, order=None, patience=None)
    everything = run(spoken, SearchLimits(seeds=1, order=None, patience=None), lm_scale=-1e-9)
    assert len(everything.found) == 4**5
    by_total = sorted(
        (one.total + 1e-9 * one.log_prob + 2.0 * one.log_prob for one in everything.found),
        reverse=True,
    )
    found = run(spoken, limits, lm_scale=2.0).found[:30]
    np.testing.assert_allclose([one.total for one in found], by_total[:30], atol=1e-4)


def test_a_context_is_read_and_an_open_end_is_not_scored() -> None:
    for seed in range(30):
        lattice = random_lattice(seed)
        spoken = speak(lattice, fake_tokenizer(), WEIGHTS)
        search = run(spoken, SearchLimits.exact(), num_context=4)
        assert_best(search, all_totals(lattice, context=4), 1)
        search = LatticeSearch(
            spoken, lm_scale=LM_SCALE, limits=SearchLimits.exact(), max_tokens=LONG, final=False
        )
        model = TableModel()
        state = model.new_state()
        while (wave := search.next_wave()) is not None:
            assert 0 not in wave.tokens
            search.learn(model.extend([state], [wave.parents], [wave.tokens])[0])
        best = search.found[0]
        assert best.log_prob == pytest.approx(sum(search.log_probs(best.prefix)), abs=1e-4)


def test_with_a_negative_scale_everything_is_tried() -> None:
    for seed in range(30):
        lattice = random_lattice(seed)
        spoken = speak(lattice, fake_tokenizer(), WEIGHTS)
        search = run(spoken, SearchLimits.exact(), lm_scale=-0.4)
        assert_best(search, all_totals(lattice, lm_scale=-0.4), 1)
        assert len(search.found) == len(all_totals(lattice))


def test_a_bound_saves_work_and_loses_nothing() -> None:
    saved = 0
    for seed in range(60):
        spoken = speak(random_lattice(seed), fake_tokenizer(), ArcWeights(am_scale=5.0))
        search = run(spoken, UNLIMITED)
        everything = run(spoken, UNLIMITED, lm_scale=-1e-12)
        saved += everything.num_run - search.num_run
        assert search.is_exact
    assert saved > 0


def test_words_have_the_scores_that_their_tokens_have() -> None:
    for seed in range(30):
        spoken = speak(random_lattice(seed), fake_tokenizer(), WEIGHTS)
        search = run(spoken, SearchLimits.exact(num_best=3))
        for one in search.found:
            words = search.words(one.prefix)
            assert len(search.log_probs(one.prefix)) == len(words)
            assert one.log_prob == pytest.approx(lm_of(tuple(words)), abs=1e-4)
            assert sum(search.log_probs(one.prefix)) >= one.log_prob - 1e-4  # `</s>` is the rest


def ladder(length: int, width: int = 4) -> SpokenLattice:
    """Any of `width` words at each of `length` places: more sequences than can be tried."""
    words = ("", *("cat", "dog", "mat", "old")[:width])
    encodings = [fake_tokenizer().encode(word) for word in words]
    rng = np.random.default_rng(1)
    return SpokenLattice(
        src=np.repeat(np.arange(length, dtype=np.int32), width),
        dst=np.repeat(np.arange(1, length + 1, dtype=np.int32), width),
        word=np.tile(np.arange(1, width + 1, dtype=np.int32), length),
        score=rng.normal(size=length * width),
        arc=np.arange(length * width, dtype=np.int32),
        words=words,
        pieces=tuple(one.ids for one in encodings),
        num_words=(1,) * len(words),
        bonus=np.zeros(len(words)),
        oov=frozenset(),
    )


@pytest.mark.parametrize(
    ("limits", "cut"),
    [
        (SearchLimits(order=None, patience=None, max_lm_steps=60), "max_lm_steps"),
        (SearchLimits(order=None, patience=None, max_arcs=2_000), "max_arcs"),
        (SearchLimits(order=None, patience=50), "patience"),
        (SearchLimits(order=3, patience=None), "order"),
        (SearchLimits(order=3, patience=None, beam=0.0), "beam"),
    ],
)
def test_each_limit_ends_the_search_with_an_answer_and_says_so(
    limits: SearchLimits, cut: str
) -> None:
    search = run(ladder(20), limits)
    assert cut in search.cuts
    assert not search.is_exact
    assert search.found
    if cut == "max_lm_steps":
        assert search.num_run < 60 + 20 * 8  # never more than one wave beyond


@pytest.mark.parametrize(
    "limits",
    [
        SearchLimits(seeds=2, patience=None, max_lm_steps=30),
        SearchLimits(seeds=2, patience=10),
        SearchLimits(seeds=2, patience=10, beam=1.0),
    ],
)
def test_to_ask_for_more_never_makes_the_best_worse(limits: SearchLimits) -> None:
    lattices = [random_lattice(seed, max_states=16, max_extra=40) for seed in range(20)]
    spoken = [speak(lattice, fake_tokenizer(), WEIGHTS) for lattice in lattices]
    for one in [*spoken, ladder(6), ladder(10), ladder(13)]:
        best = run(one, limits, lm_scale=2.0).found[0]
        assert run(one, replace(limits, num_best=50), lm_scale=2.0).found[0].total >= best.total


def test_where_the_search_for_the_best_met_too_few_the_lattice_s_own_best_are_added() -> None:
    found = run(ladder(10), SearchLimits(seeds=2, patience=5)).found
    assert len(found) < 150
    assert len(run(ladder(10), SearchLimits(num_best=150, seeds=2, patience=5)).found) >= 150


def test_a_stopped_search_keeps_its_best() -> None:
    limits = SearchLimits(order=None)
    search = LatticeSearch(ladder(20), lm_scale=1.0, limits=limits, max_tokens=LONG)
    model = TableModel()
    state = model.new_state()
    wave = search.next_wave()
    assert wave is not None
    search.learn(model.extend([state], [wave.parents], [wave.tokens])[0])
    search.stop("deadline")
    assert search.next_wave() is None
    assert search.cuts == {"deadline"}
    assert search.found


def test_to_stop_a_search_that_is_over_cuts_nothing() -> None:
    search = run(speak(random_lattice(0), fake_tokenizer(), WEIGHTS), SearchLimits.exact())
    search.stop("deadline")
    assert search.is_exact


def test_a_search_that_is_stopped_before_an_answer_is_not_exact() -> None:
    for seed in range(10):
        spoken = speak(random_lattice(seed), fake_tokenizer(), WEIGHTS)
        model = TableModel()
        for answers in range(100):
            search = LatticeSearch(spoken, lm_scale=LM_SCALE, limits=UNLIMITED, max_tokens=LONG)
            state = model.new_state()
            wave = search.next_wave()
            for _ in range(answers):
                if wave is not None:
                    search.learn(model.extend([state], [wave.parents], [wave.tokens])[0])
                    wave = search.next_wave()
            if wave is None:
                break
            assert not search.is_over
            search.stop("deadline")  # as the engine does, which has asked what comes next
            assert search.next_wave() is None
            assert search.is_over
            assert search.cuts == {"deadline"}
        assert answers > 0


def test_no_sequence_is_found_where_it_was_merged_into_another() -> None:
    for seed in range(300):
        spoken = speak(random_lattice(seed), fake_tokenizer(), WEIGHTS)
        search = run(spoken, SearchLimits(num_best=6, seeds=1, order=2, beam=0.0))
        for one in search.found:
            score = spoken.score[search.path(one.prefix)].sum() + LM_SCALE * one.log_prob
            assert one.total == pytest.approx(score, abs=1e-9)


def test_merged_histories_cost_less_and_find_nearly_as_much() -> None:
    spoken = ladder(7, width=3)
    exact = run(spoken, SearchLimits.exact())
    merged = run(spoken, SearchLimits(order=3, patience=None))
    assert merged.num_run < exact.num_run
    assert merged.found[0].total <= exact.found[0].total + 1e-9
    assert merged.found[0].total > exact.found[0].total - 2.0


def test_sequences_that_the_model_cannot_hold_are_left_out_and_named() -> None:
    spoken = ladder(20)
    search = run(spoken, SearchLimits(), max_tokens=10)
    assert "max_tokens" in search.cuts
    assert search.found == []


def test_a_node_is_run_once_and_asked_for_once() -> None:
    spoken = ladder(6, width=3)
    search = LatticeSearch(spoken, lm_scale=1.0, limits=SearchLimits.exact(), max_tokens=LONG)
    model = TableModel()
    state = model.new_state()
    asked: list[tuple[int, int]] = []
    while (wave := search.next_wave()) is not None:
        asked += zip(wave.parents.tolist(), wave.tokens.tolist(), strict=True)
        search.learn(model.extend([state], [wave.parents], [wave.tokens])[0])
    assert len(asked) == len(set(asked)) == search.num_nodes
    assert search.num_run == len({parent for parent, _ in asked})


def test_a_lattice_without_a_finite_path_is_refused() -> None:
    lattice = Lattice(
        src=np.zeros(1, np.int32),
        dst=np.ones(1, np.int32),
        words=Ragged(np.array([0, 1], np.int32), np.array([1], np.int32)),
        am=np.array([-np.inf]),
        graph=np.zeros(1),
        symbols={1: "cat"},
    )
    with pytest.raises(InputError, match="finite score"):
        run(speak(lattice, fake_tokenizer(), ArcWeights()), SearchLimits())


def test_a_lattice_of_silence_has_the_empty_sequence() -> None:
    lattice = Lattice(
        src=np.zeros(1, np.int32),
        dst=np.ones(1, np.int32),
        words=Ragged(np.array([0, 0], np.int32), np.zeros(0, np.int32)),
        am=np.array([-1.0]),
        graph=np.zeros(1),
    )
    search = run(speak(lattice, fake_tokenizer(), ArcWeights()), SearchLimits.exact())
    assert search.is_exact
    assert [search.words(one.prefix) for one in search.found] == [[]]
    assert search.found[0].total == pytest.approx(-1.0 + LM_SCALE * lm_of(()), abs=1e-5)


def test_a_sequence_that_only_the_lattice_knows_has_no_log_probs() -> None:
    search = LatticeSearch(ladder(20), lm_scale=1.0, limits=SearchLimits(), max_tokens=LONG)
    (one,) = search.best_by_lattice(1)
    with pytest.raises(ValueError, match="has not met prefix"):
        search.log_probs(one.prefix)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"seeds": 0}, "/seeds"),
        ({"num_best": 0}, "/num_best"),
        ({"patience": 0}, "/patience"),
        ({"max_lm_steps": 0}, "/max_lm_steps"),
        ({"max_arcs": -1}, "/max_arcs"),
        ({"beam": -1.0}, "/beam"),
        ({"beam": float("nan")}, "/beam"),
        ({"order": 1}, "/order"),
    ],
)
def test_limits_out_of_range_are_refused(fields: dict[str, float], pointer: str) -> None:
    with pytest.raises(InputError, match="need") as raised:
        SearchLimits(**fields)  # type: ignore[arg-type]
    assert raised.value.pointer == pointer
