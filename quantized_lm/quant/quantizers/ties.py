"""Which rows of a matrix share a scale: "row", "tensor" or "cluster:N".

Xu et al. (ICASSP 2020, arXiv 2111.14836) trade size with how widely quantization tables are tied;
these kinds of tie are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantized_lm.errors import FormatError

_CLUSTER = "cluster:"
_ROUNDS = 20


class Ties(nn.Module):
    """Groups of rows, decided by the weight that it is made with and kept with the state.

    Clusters are those of k-means on the logarithm of the rows' root mean square, started at
    evenly spaced ranks; one may be left without rows.

    Args:
        weight: (N, K) float32.
        tie: "row" for a scale per row, "tensor" for one, "cluster:N" for up to N.

    Attributes:
        count: G, the number of scales. num_rows: N.

    Raises:
        FormatError: there is no such tie.
    """

    group: Tensor | None

    def __init__(self, weight: Tensor, tie: str) -> None:
        super().__init__()
        self.num_rows = len(weight)
        self.count = _count(self.num_rows, tie)
        is_clustered = 1 < self.count < self.num_rows
        self.register_buffer("group", _clusters(weight, self.count) if is_clustered else None)

    def spread(self, per_group: Tensor) -> Tensor:
        """(G, 1) -> (N, 1), or (1, 1) where one is for all."""
        return per_group if self.group is None else per_group[self.group]

    def total(self, per_row: Tensor) -> Tensor:
        """(N,) -> (G,) float64 sums."""
        per_row = per_row.double()
        if self.count == self.num_rows:
            return per_row
        if self.group is None:
            return per_row.sum()[None]
        return per_row.new_zeros(self.count).index_add_(0, self.group, per_row)

    def largest(self, per_row: Tensor) -> Tensor:
        """(N,) of at least 0 -> (G,), the largest of each group."""
        if self.count == self.num_rows:
            return per_row
        if self.group is None:
            return per_row.max()[None]
        return per_row.new_zeros(self.count).scatter_reduce(0, self.group, per_row, "amax")

    def blocks(self, weight: Tensor) -> list[Tensor]:
        """(N, K) -> matrices with one group in each row; all of them in order make up (G,) rows."""
        if self.count == self.num_rows:
            return [weight]
        if self.group is None:
            return [weight.reshape(1, -1)]
        return [weight[self.group == index].reshape(1, -1) for index in range(self.count)]


def check_tie(tie: str) -> None:
    """Refuse what is no tie.

    Raises:
        FormatError: it is none of the three.
    """
    count = tie.removeprefix(_CLUSTER)
    is_cluster = tie.startswith(_CLUSTER) and count.isascii() and count.isdigit() and int(count) > 0
    if tie not in {"row", "tensor"} and not is_cluster:
        raise FormatError(f"tie is {tie!r}; need 'row', 'tensor' or 'cluster:N' with N above 0")


def _count(num_rows: int, tie: str) -> int:
    check_tie(tie)
    if tie == "row":
        return num_rows
    return 1 if tie == "tensor" else min(num_rows, int(tie.removeprefix(_CLUSTER)))


def _clusters(weight: Tensor, count: int) -> Tensor:
    """(N, K) -> (N,) int64 numbers below `count`, ascending with the size of the rows."""
    size = weight.detach().square().mean(1).clamp_min(torch.finfo(torch.float32).tiny).log()
    rank = (torch.arange(count, device=size.device) + 0.5) * len(size) / count
    center = size.sort().values[rank.long()]
    group = torch.zeros_like(size, dtype=torch.int64)
    for _ in range(_ROUNDS):
        group = torch.bucketize(size, (center[:-1] + center[1:]) / 2)
        rows = torch.bincount(group, minlength=count)
        total = torch.zeros_like(center).index_add_(0, group, size)
        center = torch.where(rows > 0, total / rows.clamp_min(1), center)
    return group
