"""Claims about what peers are given: padded or as a tree, the scores are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantized_lm.bench.own import OwnGpt2
from quantized_lm.bench.peers import shapes
from quantized_lm.bench.peers.gpt2_graph import Gpt2Graph, example, tensors
from quantized_lm.bench.peers.list_runner import ListRunner
from quantized_lm.bench.peers.protocol import Task

HYPOTHESES = [[3, 4, 5], [3, 4, 6, 6], [7], [3]]


def test_padding_is_at_the_right_and_has_no_target() -> None:
    inputs, targets = shapes.pad([[3, 4], [5]])
    assert inputs.tolist() == [[0, 3, 4], [0, 5, 0]]
    assert targets.tolist() == [[3, 4, 0], [5, 0, -1]]


def test_chunks_hold_hypotheses_of_like_length() -> None:
    assert [part.tolist() for part in shapes.chunks(HYPOTHESES, 3)] == [[2, 3, 0], [1]]


def test_a_tree_runs_every_context_once() -> None:
    tree = shapes.tree(HYPOTHESES)
    assert tree.graph.tokens.tolist() == [[0, 3, 4, 5, 6, 6, 7]]
    assert tree.graph.positions.tolist() == [0, 1, 2, 3, 3, 4, 1]
    # "3" and its end both follow the root; each is asked for once.
    assert len(tree.graph.targets) == 3 + 1 + 2 + 1 + 2 + 1
    assert (tree.graph.mask[5] == 0).tolist() == [True, True, True, False, True, True, False]


def test_sums_follow_the_paths() -> None:
    tree = shapes.tree([[3], [3, 4]])  # entries: 3, its end, 4, its end
    assert tree.scores(np.array([-1.0, -2.0, -4.0, -8.0], np.float32)) == [-3.0, -13.0]


def test_the_graph_scores_as_our_model_does_padded_and_as_a_tree(task: Task) -> None:
    model = OwnGpt2(task)
    graph = Gpt2Graph(task.weights, task.heads)
    for index, hypotheses in enumerate(task.read_lists()):
        expected = model.score(index)
        padded, owner = shapes.padded_graph(hypotheses)
        sums = np.zeros(len(hypotheses))
        np.add.at(sums, owner, graph(*tensors(padded)).numpy())
        assert sums == pytest.approx(expected, rel=1e-5)
        tree = shapes.tree(hypotheses)
        assert tree.scores(graph(*tensors(tree.graph)).numpy()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "setting"), [("padded", "hypotheses at a time"), ("tree", "prefixes shared")]
)
def test_a_runtime_of_graphs_scores_lists_in_either_form(
    task: Task, variant: str, setting: str
) -> None:
    model = OwnGpt2(task)
    graph = Gpt2Graph(task.weights, task.heads)
    runner = ListRunner(lambda one: graph(*tensors(one)).numpy(), task.read_lists(), variant)
    assert setting in runner.setting
    for index in range(len(task.read_lists())):
        assert runner.score(index) == pytest.approx(model.score(index), rel=1e-5)


def test_the_example_to_trace_with_runs(task: Task) -> None:
    graph = Gpt2Graph(task.weights, task.heads)
    assert torch.isfinite(graph(*example(task.read_lists()[0]))).all()
