"""Trees kept from earlier work change what is computed, and no number."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantized_lm.artifact import LoadedModel, bundled_path, load_artifact
from quantized_lm.combine import Weights
from quantized_lm.errors import ShapeError
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice_scoring import LatticeRequest, arc_weights, prepare_lattice
from quantized_lm.models.base import LanguageModel
from quantized_lm.ops import BACKENDS, select_backend
from quantized_lm.prefix_cache import PrefixCache
from quantized_lm.scoring import ListScores, PreparedList, ScoreRequest, prepare, run_batch
from quantized_lm.waves import Running, Work, advance
from tests.fakes import WORDS, fake_loaded
from tests.quantized_lm.lattice.random_lattices import random_lattice
from tests.quantized_lm.models.test_native import load, odd_model

ROOMY = 1 << 24
ROUNDING = {"reference": 1e-5, "cpu": 0.0}  # torch adds up in an order that depends on the batch
HEARD = ["the", "cat", "sat", "on", "a", "mat"]


def run(
    work: Sequence[Work[ListScores]], model: LanguageModel, cache: PrefixCache
) -> list[ListScores]:
    """As `run_all`, with a cache."""
    running = [Running(one, model, cache=cache) for one in work]
    while any(not one.is_over for one in running):
        advance(running, model)
    return [one.result() for one in running]


def partials(loaded: LoadedModel, context: Sequence[str] = ()) -> Iterator[PreparedList]:
    """What a streaming decoder sends while a sentence is spoken: words come, endings change."""
    for length in range(1, len(HEARD) + 1):
        said = " ".join(HEARD[:length])
        texts = (said, f"{said} dog", f"{said} old", said.replace("cat", "dog"))
        is_last = length == len(HEARD)
        yield prepare(ScoreRequest(texts, tuple(context), final=is_last), loaded)


def real_models() -> list[str]:
    return ["reference", *(["cpu"] if BACKENDS["cpu"].is_available else [])]


@pytest.mark.parametrize("backend", real_models()[-1:])
@pytest.mark.parametrize("context", [(), ("a dog ran far", "it saw the mat")])
def test_partials_cost_what_is_new_and_score_the_same(
    backend: str, context: tuple[str, ...]
) -> None:
    loaded = load_artifact(bundled_path("en-small"), backend=backend)
    cache = PrefixCache(loaded.model, ROOMY)
    computed = asked = 0
    for prepared in partials(loaded, context):
        (alone,) = run_batch([prepared], loaded)
        (cached,) = run([prepared], loaded.model, cache)
        np.testing.assert_allclose(
            cached.path_log_prob, alone.path_log_prob, atol=ROUNDING[backend], rtol=0
        )
        assert cached.usage.tokens == alone.usage.tokens
        computed += cached.usage.forward_nodes
        asked += alone.usage.forward_nodes
    assert computed < 0.6 * asked


def test_partials_after_a_context_that_is_cut_find_it_as_they_grow() -> None:
    loaded = fake_loaded()
    cache = PrefixCache(loaded.model, ROOMY)
    found = [
        run([prepared], loaded.model, cache)[0].usage.cache_hits
        for prepared in partials(loaded, ["a dog ran far"] * 20)
    ]
    assert found[0] == 0
    assert min(found[1:]) >= loaded.model.max_tokens // 2


@st.composite
def conversations(draw: st.DrawFn) -> list[ScoreRequest]:
    """Requests whose contexts and texts begin alike now and then."""
    rng = random.Random(draw(st.integers(0, 10_000)))
    words = WORDS.split()[:4]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randrange(5)))

    return [
        ScoreRequest(
            tuple(text() for _ in range(rng.randrange(1, 5))),
            tuple(text() for _ in range(rng.randrange(3))),
            final=rng.random() < 0.5,
        )
        for _ in range(8)
    ]


@given(
    conversations(),
    st.sampled_from([1, 600, 6_000, ROOMY]),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_work_gets_the_numbers_it_gets_alone(
    requests: list[ScoreRequest], max_bytes: int, together: int, wants_best: bool
) -> None:
    loaded = fake_loaded()
    cache = PrefixCache(loaded.model, max_bytes)
    prepared = [prepare(request, loaded) for request in requests]
    if wants_best:
        prepared = [replace(one, total_of=lambda log_prob: log_prob) for one in prepared]
    for start in range(0, len(prepared), together):
        part = prepared[start : start + together]
        for cached, alone in zip(
            run(part, loaded.model, cache), run_batch(part, loaded), strict=True
        ):
            np.testing.assert_array_equal(cached.path_log_prob, alone.path_log_prob)
            np.testing.assert_array_equal(cached.log_prob, alone.log_prob)
            assert cached.usage.tree_nodes <= alone.usage.tree_nodes
            assert 0 <= cached.usage.forward_nodes <= alone.usage.forward_nodes
        assert cache.num_bytes <= max_bytes


def test_what_comes_again_is_not_scored_again() -> None:
    loaded = fake_loaded()
    events: Counter[str] = Counter()
    cache = PrefixCache(loaded.model, ROOMY, lambda event: events.update([event]))
    request = ScoreRequest(("the cat", "the dog"), ("a mat",), final=False)
    first, again = (run([prepare(request, loaded)], loaded.model, cache)[0] for _ in range(2))
    assert first.usage.cache_hits == 0
    assert (again.usage.tree_nodes, again.usage.forward_nodes) == (0, 0)
    assert again.usage.cache_hits == again.prepared.tree.num_nodes - 1
    assert events == {"miss": 1, "hit": 1}


def test_the_winner_is_the_next_context() -> None:
    loaded = fake_loaded()
    cache = PrefixCache(loaded.model, ROOMY)
    run(
        [prepare(ScoreRequest(("the cat sat", "a cat sat"), ("far",)), loaded)], loaded.model, cache
    )
    after = prepare(ScoreRequest(("on a mat",), ("far", "a cat sat")), loaded)
    (scores,) = run([after], loaded.model, cache)
    assert scores.usage.cache_hits == after.tree.base  # the boundary after the text included


def test_lists_that_will_not_come_again_are_not_kept() -> None:
    loaded = fake_loaded()
    cache = PrefixCache(loaded.model, ROOMY)
    run([prepare(ScoreRequest(("the cat",)), loaded)], loaded.model, cache)
    assert len(cache) == 0


def test_of_a_tree_too_large_the_context_is_kept() -> None:
    loaded = fake_loaded()
    request = ScoreRequest(tuple(" ".join(HEARD[:n]) for n in range(6)), ("far",), final=False)
    prepared = prepare(request, loaded)
    cache = PrefixCache(loaded.model, 4 * 520 * prepared.tree.num_nodes - 1)
    run([prepared], loaded.model, cache)
    (scores,) = run([prepared], loaded.model, cache)
    assert scores.usage.cache_hits == prepared.tree.base > 0


def test_the_tree_used_longest_ago_is_forgotten_first() -> None:
    loaded = fake_loaded()
    events: Counter[str] = Counter()

    def ask(word: str) -> int:
        request = ScoreRequest((word,), (f"{word} far",), final=False)
        (scores,) = run([prepare(request, loaded)], loaded.model, cache)
        return scores.usage.cache_hits

    cache = PrefixCache(loaded.model, ROOMY)
    ask("cat")
    size = cache.num_bytes
    cache = PrefixCache(loaded.model, 4 * size, lambda event: events.update([event]))
    for word in ("cat", "mat", "dog", "cat"):
        ask(word)
    assert events["hit"] == 1
    for word in ("saw", "run"):
        ask(word)
    assert ask("cat") > 0
    assert ask("mat") == 0
    assert events["eviction"] > 0


def test_one_stream_does_not_crowd_out_another() -> None:
    loaded = fake_loaded()
    events: Counter[str] = Counter()

    def ask(context: str, text: str) -> int:
        request = ScoreRequest((text,), (context,), final=False)
        (scores,) = run([prepare(request, loaded)], loaded.model, cache)
        return scores.usage.cache_hits

    said = HEARD * 2
    cache = PrefixCache(loaded.model, ROOMY)
    ask("a dog ran far", " ".join(said))
    cache = PrefixCache(loaded.model, 4 * cache.num_bytes, lambda event: events.update([event]))
    ask("an old mat", "the")
    for length in range(1, len(said) + 1):
        ask("a dog ran far", " ".join(said[:length]))
        assert len(cache) == 2
        assert cache.num_bytes == sum(entry.num_bytes for entry in cache._entries.values())
    assert ask("an old mat", "the cat") > 0
    assert events == {"miss": 2, "hit": len(said)}


def test_paths_that_only_an_older_tree_has_are_still_found() -> None:
    loaded = fake_loaded()
    cache = PrefixCache(loaded.model, ROOMY)
    for text in ("the cat sat", "the dog", "the cat sat on"):
        (scores,) = run([prepare(ScoreRequest((text,), final=False), loaded)], loaded.model, cache)
    assert scores.usage.cache_hits >= len(loaded.tokenizer.encode("the cat sat").ids)
    assert len(cache) == 2


def test_a_first_word_that_contexts_share_is_no_hit() -> None:
    loaded = fake_loaded()
    events: list[str] = []
    cache = PrefixCache(loaded.model, ROOMY, events.append)
    asked: list[tuple[str, tuple[str, ...]]] = [
        *(("the cat", ("a dog ran far",)), ("the cat", ("a mat",)), ("an old mat", ("a mat",))),
        *(("the cat sat", ()), ("the cat sat on", ()), ("the old dog ran far", ())),
    ]
    for text, context in asked:
        run([prepare(ScoreRequest((text,), context, final=False), loaded)], loaded.model, cache)
    assert events == ["miss", "miss", "hit", "miss", "hit", "miss"]


def test_work_that_was_stopped_leaves_nothing() -> None:
    loaded = fake_loaded()
    cache = PrefixCache(loaded.model, ROOMY)
    request = LatticeRequest(
        random_lattice(1), arc_weights(Weights(am_scale=1.0)), 1.0, SearchLimits(), context=("far",)
    )
    running = Running(prepare_lattice(request, loaded), loaded.model, cache=cache)
    running.stop("deadline")
    assert running.is_over
    running.result()
    assert len(cache) == 0


@pytest.mark.parametrize("seed", range(6))
def test_lattices_find_what_they_find_alone(seed: int) -> None:
    loaded = fake_loaded()
    cache = PrefixCache(loaded.model, ROOMY)
    request = LatticeRequest(
        random_lattice(seed),
        arc_weights(Weights(am_scale=1.0)),
        1.0,
        SearchLimits(),
        context=("far",),
    )
    prepared = prepare_lattice(request, loaded)
    running = Running(prepared, loaded.model)
    while not running.is_over:
        advance([running], loaded.model)
    alone = running.result()
    for is_again in (False, True):
        running = Running(prepared, loaded.model, cache=cache)
        while not running.is_over:
            advance([running], loaded.model)
        cached = running.result()
        assert cached.search.found == alone.search.found
        assert (cached.usage.cache_hits > 0) == is_again
    assert cached.usage.lm_steps < alone.usage.lm_steps


@pytest.mark.parametrize("context", [(), ("a dog ran far",)])
def test_no_lattice_costs_less_than_nothing(context: tuple[str, ...]) -> None:
    loaded = fake_loaded()
    cache = PrefixCache(loaded.model, ROOMY)
    weights, limits = arc_weights(Weights(am_scale=1.0)), SearchLimits(num_best=3, seeds=2)
    for seed in range(20):
        lattice, final = random_lattice(seed), bool(context) and seed % 2 == 0
        request = LatticeRequest(lattice, weights, 1.0, limits, context=context, final=final)
        prepared = prepare_lattice(request, loaded)
        for answers in (0, 1, 2, 100):
            running = Running(prepared, loaded.model, cache=cache)
            for _ in range(answers):
                if not running.is_over:
                    advance([running], loaded.model)
            running.stop("deadline")
            usage = running.result().usage
            assert usage.lm_steps >= 0
            assert usage.tree_nodes >= 0


def nodes_of(*ids: int) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


@pytest.mark.parametrize("architecture", ["transformer", "gpt2", "lstm"])
@pytest.mark.parametrize("backend", real_models())
def test_a_fork_goes_on_as_its_tree_would(architecture: str, backend: str) -> None:
    model = load(odd_model(architecture), select_backend(backend))
    state = model.new_state([5, 6])
    model.extend([state], [nodes_of(2, 3, 2, 5)], [nodes_of(7, 8, 9, 10)])
    fork = model.fork(state, nodes_of(0, 1, 2, 5, 6, 3))
    bare = model.fork(state, nodes_of(0))
    whole = [nodes_of(6, 3, 5)], [nodes_of(1, 2, 3)]
    part = [nodes_of(4, 5, 3)], [nodes_of(1, 2, 3)]
    (expected,) = model.extend([state], *whole)
    (actual,) = model.extend([fork], *part)
    np.testing.assert_allclose(actual, expected, atol=ROUNDING[backend])
    fresh = model.new_state()
    (one,) = model.extend([bare], [nodes_of(0)], [nodes_of(4)])
    (other,) = model.extend([fresh], [nodes_of(0)], [nodes_of(4)])
    np.testing.assert_allclose(one, other, atol=ROUNDING[backend])
    assert model.state_bytes(fork) > 0


@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
@pytest.mark.parametrize("backend", real_models())
@pytest.mark.parametrize("nodes", [(), (1,), (0, 2), (0, 1, 1), (0, 7), (0, -1), (1, 0)])
def test_nodes_that_are_no_tree_are_refused(
    architecture: str, backend: str, nodes: tuple[int, ...]
) -> None:
    model = load(odd_model(architecture), select_backend(backend))
    state = model.new_state([5, 6])
    with pytest.raises(ShapeError, match="need the root first"):
        model.fork(state, nodes_of(*nodes))


@pytest.mark.skipif(not BACKENDS["cpu"].is_available, reason="there is no native engine")
def test_a_tree_of_another_model_is_refused() -> None:
    backend = select_backend("cpu")
    one, other = (load(odd_model("lstm"), backend) for _ in range(2))
    with pytest.raises(ShapeError, match="another model"):
        one.fork(other.new_state(), nodes_of(0))


@pytest.mark.skipif(not BACKENDS["cpu"].is_available, reason="there is no native engine")
def test_memory_of_trees_is_used_again_by_any_but_one_that_is_kept() -> None:
    model = load(odd_model("transformer"), select_backend("cpu"))

    def bytes_of(length: int) -> tuple[int, int]:
        state = model.new_state()
        chain = np.arange(length, dtype=np.int32)
        model.extend([state], [chain], [np.full(length, 3, np.int32)])
        fork = model.fork(state, nodes_of(0, 1))
        return model.state_bytes(state), model.state_bytes(fork)

    small, kept = bytes_of(4)
    assert kept < small
    large, _ = bytes_of(40)
    assert large > 8 * small
    again, kept_again = bytes_of(8)
    assert again == pytest.approx(large, rel=0.05)  # its memory, as the small one's does not do
    assert kept_again == kept
    assert bytes_of(40)[0] == pytest.approx(large, rel=0.05)
