"""Claims about rows that share a scale."""

from __future__ import annotations

import pytest
import torch

from quantized_lm.errors import FormatError
from quantized_lm.quant.quantizers.ties import Ties

WEIGHT = torch.tensor([[1.0, -1.0], [9.0, 9.0], [1.1, 1.0], [10.0, -9.0], [0.0, 0.0]])


@pytest.mark.parametrize(("tie", "count"), [("row", 5), ("tensor", 1), ("cluster:3", 3)])
def test_sums_and_maxima_are_taken_over_groups(tie: str, count: int) -> None:
    ties = Ties(WEIGHT, tie)
    size = torch.tensor([1.0, 9.0, 2.0, 10.0, 0.5])
    assert ties.count == count
    assert ties.total(size).sum() == size.sum()
    assert ties.largest(size).max() == 10
    assert sum(block.numel() for block in ties.blocks(WEIGHT)) == WEIGHT.numel()
    spread = ties.spread(ties.largest(size)[:, None])
    assert (spread.flatten() >= size).all()


def test_clusters_hold_rows_of_like_size() -> None:
    group = Ties(WEIGHT, "cluster:3").group
    assert group is not None
    assert group.tolist() == [1, 2, 1, 2, 0]


def test_more_clusters_than_rows_are_rows() -> None:
    ties = Ties(WEIGHT, "cluster:99")
    assert (ties.count, ties.group) == (5, None)


def test_a_cluster_may_lose_its_rows() -> None:
    ties = Ties(torch.ones(6, 2), "cluster:3")
    assert ties.count == 3
    total = ties.total(torch.ones(6))
    assert sorted(total.tolist()) == [0, 0, 6]
    assert [len(block) for block in ties.blocks(torch.ones(6, 2))] == [1, 1, 1]


def test_clusters_are_kept_with_the_state() -> None:
    ties, other = Ties(WEIGHT, "cluster:2"), Ties(WEIGHT.flip(0), "cluster:2")
    other.load_state_dict(ties.state_dict())
    assert ties.group is not None
    assert other.group is not None
    assert torch.equal(ties.group, other.group)


@pytest.mark.parametrize("tie", ["", "rows", "cluster", "cluster:0", "cluster:-1", "cluster:x"])
def test_an_unknown_tie_is_refused(tie: str) -> None:
    with pytest.raises(FormatError, match="need 'row', 'tensor' or 'cluster:N'"):
        Ties(WEIGHT, tie)
