from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantized_lm.tree import TokenTree, build_tree, merge_prefixes

SEQUENCES = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=8)
# Tokens whose order changes with that of their bytes.
WIDE = st.sampled_from([0, 1, 2, 255, 256, 257, 65_536, 2**31 - 1])


def merged(sequences: list[list[int]], context: list[int]) -> TokenTree:
    ids = np.array([token for sequence in sequences for token in sequence], np.int32)
    return merge_prefixes(ids, np.array([*map(len, sequences)], np.int64), context=context)


def check_numbering(sequences: list[list[int]], context: list[int]) -> None:
    """A node is a prefix; sorted by the tokens' bytes, prefixes stand depth first."""
    tree = merged(sequences, context)
    prefixes = {tuple(one[:end]) for one in sequences for end in range(1, len(one) + 1)}
    in_order = sorted(prefixes, key=lambda prefix: np.array(prefix, np.int32).tobytes())
    number = {prefix: len(context) + 1 + at for at, prefix in enumerate(in_order)}
    number[()] = tree.base
    assert tree.base == len(context)
    assert tree.token.tolist() == [0, *context, *(prefix[-1] for prefix in in_order)]
    assert tree.parent.tolist() == [
        *range(-1, len(context)),
        *(number[prefix[:-1]] for prefix in in_order),
    ]
    assert tree.leaf.tolist() == [number[tuple(one)] for one in sequences]
    assert tree.path_node.tolist() == [
        number[tuple(one[:end])] for one in sequences for end in range(1, len(one) + 1)
    ]
    assert tree.path_length.tolist() == [*map(len, sequences)]


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


@given(st.lists(st.lists(WIDE, max_size=5), max_size=12), st.lists(WIDE, max_size=2))
def test_nodes_are_numbered_depth_first(sequences: list[list[int]], context: list[int]) -> None:
    check_numbering(sequences, context)


def test_a_thousand_hypotheses_are_numbered_alike() -> None:
    draw = random.Random(7)
    check_numbering(
        [[draw.randrange(3) for _ in range(draw.randrange(9))] for _ in range(1000)], []
    )


def test_without_hypotheses_the_context_is_all_there_is() -> None:
    tree = merged([], [5, 6])
    assert tree.token.tolist() == [0, 5, 6]
    assert tree.leaf.size == tree.path_node.size == tree.path_length.size == 0
    assert tree.depth == 2


@pytest.mark.parametrize("lengths", [[2, 2], [2], [4, -1], [2**62, 2**62], []])
def test_lengths_that_are_not_those_of_the_ids_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths do not add up to the 3 ids"):
        merge_prefixes(np.ones(3, np.int32), np.array(lengths, np.int64))


def test_ids_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError):
        merge_prefixes(np.ones(3), np.array([3]))  # type: ignore[arg-type]
