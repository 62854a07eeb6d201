from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quantized_lm.tree import build_tree

SEQUENCES = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=8)


@given(SEQUENCES, st.lists(st.integers(0, 4), max_size=4), st.booleans())
def test_every_path_spells_its_sequence(
    sequences: list[list[int]], context: list[int], final: bool
) -> None:
    tree = build_tree(sequences, context=context, final=final)
    for index, sequence in enumerate(sequences):
        spelled = tree.token[tree.path(index)].tolist()
        assert spelled == sequence + [0] * final


@given(SEQUENCES)
def test_a_tree_has_one_node_per_distinct_prefix(sequences: list[list[int]]) -> None:
    tree = build_tree(sequences, final=False)
    prefixes = {tuple(s[:end]) for s in sequences for end in range(1, len(s) + 1)}
    assert tree.num_scored == len(prefixes)
    assert (tree.parent[1:] < range(1, tree.num_nodes)).all()


@given(SEQUENCES, st.lists(st.integers(0, 4), max_size=4), st.booleans())
def test_the_paths_of_all_hypotheses_stand_one_after_another(
    sequences: list[list[int]], context: list[int], final: bool
) -> None:
    tree = build_tree(sequences, context=context, final=final)
    paths = [tree.path(index).tolist() for index in range(len(sequences))]
    assert tree.path_node.tolist() == [node for path in paths for node in path]
    assert tree.path_length.tolist() == [len(path) for path in paths]
    assert tree.leaf.tolist() == [path[-1] if path else tree.base for path in paths]
    for path in paths:
        assert tree.parent[path].tolist() == [tree.base, *path][:-1]


def test_equal_texts_end_in_one_leaf() -> None:
    tree = build_tree([[5, 6], [5, 7], [5, 6]])
    assert tree.leaf[0] == tree.leaf[2] != tree.leaf[1]
    assert tree.num_scored == 5  # 5, 6, </s>, 7, </s>


def test_the_context_is_a_path_that_is_not_scored() -> None:
    tree = build_tree([[5]], context=[8, 9, 0])
    assert tree.base == 3
    assert tree.token.tolist() == [0, 8, 9, 0, 5, 0]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 3, 4]
    assert tree.num_scored == 2
    assert tree.depth == 5


def test_an_empty_hypothesis_is_the_boundary_alone() -> None:
    assert build_tree([[]]).token.tolist() == [0, 0]
    assert build_tree([[]], final=False).path(0).size == 0
