"""Claims about scoring trees that hold for every architecture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantized_lm.errors import ShapeError
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.tree_transformer import GATHERED_KEYS
from quantized_lm.tree import TokenTree, build_tree

SEQUENCES = st.lists(st.lists(st.integers(1, 22), max_size=9), min_size=1, max_size=6)


def plain(model: FloatModel, context: Sequence[int], sequence: Sequence[int]) -> float:
    """log P(sequence, </s> | context) by one forward pass over the whole sentence."""
    ids = [0, *context, *sequence, 0]
    tokens = torch.tensor([ids[:-1]])
    hidden = model(tokens, torch.zeros_like(tokens))
    log_prob = model.embedding.logits(hidden)[0].log_softmax(-1)
    return sum(log_prob[i, ids[i + 1]].item() for i in range(len(context), len(ids) - 1))


def tree_scores(model: FloatModel, trees: Sequence[TokenTree]) -> list[list[float]]:
    log_probs = model.extend(
        [model.new_state(t.token[1 : t.base + 1].tolist()) for t in trees],
        [t.parent[t.base + 1 :] for t in trees],
        [t.token[t.base + 1 :] for t in trees],
    )
    return [
        [float(part[t.path(h) - t.base - 1].sum()) for h in range(len(t.leaf))]
        for t, part in zip(trees, log_probs, strict=True)
    ]


@settings(deadline=None, max_examples=30)
@given(st.lists(SEQUENCES, min_size=1, max_size=3), st.lists(st.integers(0, 22), max_size=4))
def test_a_batch_of_trees_scores_as_plain_forward_passes(
    model: FloatModel, lists: list[list[list[int]]], context: list[int]
) -> None:
    trees = [build_tree(sequences, context=context) for sequences in lists]
    for sequences, scores in zip(lists, tree_scores(model, trees), strict=True):
        expected = [plain(model, context, sequence) for sequence in sequences]
        assert scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("step", [1, 3])
def test_trees_extended_in_waves_give_the_numbers_of_trees_built_at_once(
    model: FloatModel, step: int
) -> None:
    trees = [build_tree([[3, 4, 5], [3, 4, 6], [7]]), build_tree([[9, 9, 2, 1], [9, 3]])]
    expected = model.extend(
        [model.new_state() for _ in trees],
        [t.parent[1:] for t in trees],
        [t.token[1:] for t in trees],
    )
    states = [model.new_state() for _ in trees]
    waves = [
        model.extend(
            states,
            [tree.parent[start : start + step] for tree in trees],
            [tree.token[start : start + step] for tree in trees],
        )
        for start in range(1, max(tree.num_nodes for tree in trees), step)
    ]
    for whole, *parts in zip(expected, *waves, strict=True):
        assert np.concatenate(parts) == pytest.approx(whole, abs=1e-5)


def test_only_nodes_with_children_are_run_and_each_once(model: FloatModel) -> None:
    state = model.new_state()
    model.extend([state], [np.array([0, 1, 1], np.int32)], [np.array([4, 5, 6], np.int32)])
    assert [slot >= 0 for slot in state.slot] == [True, True, False, False]
    model.extend([state], [np.array([3], np.int32)], [np.array([2], np.int32)])
    assert [slot >= 0 for slot in state.slot] == [True, True, False, True, False]
    assert state.kept
    assert state.num_run == 3


def test_nothing_to_add_is_nothing_to_score(model: FloatModel) -> None:
    empty = np.zeros(0, np.int32)
    assert model.extend([model.new_state()], [empty], [empty])[0].shape == (0,)


def test_a_tree_with_more_nodes_than_are_taken_at_a_time_is_scored_right(
    model: FloatModel,
) -> None:
    sequences = [[a, b, 1] for a in range(1, 23) for b in range(1, 23)]
    tree = build_tree(sequences)
    assert (
        np.unique(tree.parent).size * 3 > GATHERED_KEYS
    )  # so attention takes them in several groups
    scores = tree_scores(model, [tree])[0]
    for index in (0, 150, 483):
        assert scores[index] == pytest.approx(plain(model, [], sequences[index]), abs=1e-4)


def test_a_document_does_not_see_its_neighbor_in_the_window(model: FloatModel) -> None:
    tokens = torch.tensor([[0, 3, 4, 0, 5, 6]])
    together = model(tokens, torch.tensor([[0, 0, 0, 1, 1, 1]]))
    alone = model(tokens[:, 3:], torch.zeros(1, 3))
    assert together[:, 3:].numpy() == pytest.approx(alone.numpy(), abs=1e-5)


def test_a_model_says_how_much_it_takes(model: FloatModel) -> None:
    assert (model.vocab_size, model.max_tokens) == (23, 64)


def test_the_longest_path_is_scored_and_no_longer_one(model: FloatModel) -> None:
    state = model.new_state([3] * 63)
    (log_prob,) = model.extend([state], [np.array([63], np.int32)], [np.array([0], np.int32)])
    assert log_prob[0] == pytest.approx(plain(model, [3] * 63, []), abs=1e-4)
    with pytest.raises(ShapeError, match="65 tokens; need at most 64"):
        model.extend([state], [np.array([64], np.int32)], [np.array([0], np.int32)])


def test_nodes_that_do_not_fit_together_are_refused(model: FloatModel) -> None:
    with pytest.raises(ShapeError, match="need one shape"):
        model.extend([model.new_state()], [np.zeros(1, np.int32)], [np.zeros(2, np.int32)])
    for parents in ([-1], [3], [0, 4], [0, -3]):
        tokens = np.ones(len(parents), np.int32)
        with pytest.raises(ShapeError, match=f"is {parents[-1]}; need 0 to"):
            model.extend([model.new_state([5, 6])], [np.array(parents, np.int32)], [tokens])
