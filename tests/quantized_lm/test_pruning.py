"""The best hypothesis is the same, whether the others are scored or given up."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantized_lm import pruning
from quantized_lm.artifact import LoadedModel
from quantized_lm.pruning import MOST_WAVES, BestSearch, Search, TotalOf, search
from quantized_lm.scoring import ListScores, PreparedList, ScoreRequest, prepare, run_batch
from quantized_lm.tree import TokenTree, build_tree, path_sums
from tests.fakes import WORDS, TableModel, fake_loaded

LOADED = fake_loaded(model=TableModel(max_tokens=128))
TEXTS = st.lists(st.sampled_from([*WORDS.split(), "zq"]), max_size=12).map(" ".join)
LISTS = st.builds(
    ScoreRequest,
    st.lists(TEXTS, min_size=1, max_size=12).map(tuple),
    st.lists(TEXTS, max_size=2).map(tuple),
    st.booleans(),
)
SCALES = st.sampled_from([0.0, 0.01, 0.5, 1.0, 8.0])
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def every_tree_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "FEWEST_NODES", 0)


def weighted(known: NDArray[np.float64], lm_scale: float) -> TotalOf:
    return lambda log_prob: known + lm_scale * log_prob


def best_only(prepared: PreparedList, known: NDArray[np.float64], scale: float) -> PreparedList:
    return dataclasses.replace(prepared, total_of=weighted(known, scale))


def check_winner(
    pruned: ListScores, whole: ListScores, known: NDArray[np.float64], scale: float
) -> None:
    totals = [known + scale * np.maximum(one.log_prob, -1e9) for one in (pruned, whole)]
    winner = int(np.argmax(totals[1]))
    assert int(np.argmax(totals[0])) == winner
    assert pruned.is_complete[winner]
    assert pruned.log_prob[pruned.is_complete].tolist() == pytest.approx(
        whole.log_prob[pruned.is_complete].tolist(), abs=1e-9
    )
    assert (pruned.log_prob[~pruned.is_complete] == -np.inf).all()
    assert pruned.detail(winner).token_log_probs.tolist() == (
        whole.detail(winner).token_log_probs.tolist()
    )
    usage = pruned.usage
    assert usage.tree_nodes + usage.skipped_nodes == whole.usage.tree_nodes
    assert usage.skipped_hypotheses == int((~pruned.is_complete).sum())
    assert usage.forward_nodes <= whole.usage.forward_nodes
    assert usage.tokens == whole.usage.tokens


@settings(deadline=None, max_examples=300, derandomize=True)
@given(request=LISTS, scale=SCALES, spread=st.sampled_from([0.0, 0.1, 3.0, 100.0]), seed=SEEDS)
def test_the_winner_and_its_score_are_those_of_scoring_everything(
    request: ScoreRequest, scale: float, spread: float, seed: int
) -> None:
    # Rounded, so that equal totals happen: then the decoder's order decides.
    known = np.round(spread * np.random.default_rng(seed).normal(size=len(request.texts)), 1)
    prepared = prepare(request, LOADED)
    pruned, whole = run_batch([best_only(prepared, known, scale), prepared], LOADED)
    check_winner(pruned, whole, known, scale)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(requests=st.lists(LISTS, min_size=2, max_size=4), seed=SEEDS)
def test_lists_that_share_passes_do_not_change_each_other(
    requests: list[ScoreRequest], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    prepared = [prepare(request, LOADED) for request in requests]
    known = [5.0 * generator.normal(size=len(request.texts)) for request in requests]
    wishes = [best_only(item, column, 1.0) for item, column in zip(prepared, known, strict=True)]
    together = run_batch([*wishes, *prepared], LOADED)
    for index, wish in enumerate(wishes):
        (alone,) = run_batch([wish], LOADED)
        assert together[index].log_prob.tolist() == alone.log_prob.tolist()
        check_winner(together[index], together[len(wishes) + index], known[index], 1.0)


def searched(looking: Search, tree: TokenTree, log_prob: NDArray[np.float32]) -> Iterator[int]:
    """Answer every wave from a table of all nodes; yields the nodes of each wave."""
    node_of_state = [0]
    while (wave := looking.next_wave()) is not None:
        new = []
        for parent, token in zip(wave.parents.tolist(), wave.tokens.tolist(), strict=True):
            is_child = (tree.parent == node_of_state[parent]) & (tree.token == token)
            (node,) = np.flatnonzero(is_child)
            assert not looking.is_known[node]
            node_of_state.append(int(node))
            new.append(int(node))
        looking.learn(log_prob[new])
        assert looking.log_prob[new].tolist() == log_prob[new].tolist()
        yield len(new)
    assert len(set(node_of_state)) == len(node_of_state)


@pytest.mark.parametrize("zeros", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_no_hypothesis_that_could_win_is_given_up(zeros: float, spread: float) -> None:
    # Whole numbers, many of them 0: equal totals, and winners that nobody would expect.
    generator = np.random.default_rng(11)
    skipped = 0
    for _ in range(400):
        count = generator.integers(2, 20)
        tree = build_tree(
            [generator.integers(1, 4, generator.integers(12)).tolist() for _ in range(count)]
        )
        log_prob = -generator.integers(0, 9, tree.num_nodes).astype(np.float32)
        log_prob[generator.random(tree.num_nodes) < zeros] = 0.0
        known = np.round(spread * generator.normal(size=count))
        scale = float(generator.choice([0.0, 0.5, 1.0, 4.0]))
        looking = BestSearch(tree, weighted(known, scale))
        waves = list(searched(looking, tree, log_prob))
        assert len(waves) <= MOST_WAVES
        scores = path_sums(log_prob[tree.path_node], tree.path_length)
        winner = int(np.argmax(known + scale * scores))
        assert looking.is_known[tree.path(winner)].all()
        skipped += tree.num_scored - sum(waves)
    assert skipped > 0


def test_waves_are_few_and_a_hopeless_hypothesis_is_left_early() -> None:
    generator = np.random.default_rng(1)
    sequences = [[1, *generator.integers(2, 50, 20).tolist()] for _ in range(40)]
    tree = build_tree(sequences)
    log_prob = -generator.gamma(2.0, 1.0, tree.num_nodes).astype(np.float32)
    known = np.linspace(0.0, -60.0, 40)
    looking = BestSearch(tree, weighted(known, 1.0))
    waves = list(searched(looking, tree, log_prob))
    assert 1 < len(waves) <= MOST_WAVES
    assert sum(waves) < 0.7 * tree.num_scored
    assert looking.is_known[tree.leaf[0]]
    assert not looking.is_known[tree.path(39)].all()


def test_a_small_tree_is_scored_in_one_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = build_tree([[5, 6, 7], [8, 9]])
    monkeypatch.setattr(pruning, "FEWEST_NODES", tree.num_nodes + 1)
    looking = search(tree, weighted(np.array([0.0, -100.0]), 1.0))
    log_prob = np.zeros(tree.num_nodes, np.float32)
    assert list(searched(looking, tree, log_prob)) == [tree.num_scored]


def test_real_lists_have_the_same_winner(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    model = TableModel(max_tokens=512)
    loaded: LoadedModel = fake_loaded(model=model)
    skipped = 0
    for name in ("ljprompts", "libri", "an4_test"):
        with gzip.open(shared_data / "nbest" / f"{name}.pocketsphinx.jsonl.gz", "rt") as lines:
            for line in [*lines][:4]:
                hypotheses = json.loads(line)["hyps"]
                request = ScoreRequest(tuple(hypothesis["text"] for hypothesis in hypotheses))
                known = np.array([hypothesis["am"] for hypothesis in hypotheses])
                prepared = prepare(request, loaded)
                pruned, whole = run_batch([best_only(prepared, known, 3.0), prepared], loaded)
                check_winner(pruned, whole, known, 3.0)
                skipped += pruned.usage.skipped_nodes
    assert skipped > 0
