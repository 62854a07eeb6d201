"""Refuse arguments that no kernel could use. Every backend relies on these having passed."""

from __future__ import annotations

import torch
from torch import Tensor

from quantized_lm.errors import NonFiniteError, ShapeError


def require_matrix(x: Tensor, num_columns: int, name: str) -> None:
    """Require a contiguous (M, num_columns) float32 CPU matrix.

    Contiguity is asked for rather than made: a silent copy on the hot path is a bug.

    Raises:
        ShapeError: it is something else.
    """
    if (
        x.ndim != 2
        or x.shape[1] != num_columns
        or x.dtype != torch.float32
        or not x.is_contiguous()
    ):
        raise ShapeError(
            f"{name} is {x.dtype} {tuple(x.shape)}, strides {x.stride()}; need a contiguous "
            f"float32 matrix with {num_columns} columns"
        )


def require_indices(index: Tensor, name: str) -> None:
    """Require a contiguous (T,) int64 vector.

    Raises:
        ShapeError: it is something else.
    """
    if index.ndim != 1 or index.dtype != torch.int64 or not index.is_contiguous():
        raise ShapeError(
            f"{name} is {index.dtype} {tuple(index.shape)}; need a contiguous int64 vector"
        )


def require_below(index: Tensor, limit: int, name: str) -> None:
    """Require every entry of a (T,) int64 vector to be in [0, limit).

    Raises:
        ShapeError: one is not.
    """
    if index.numel() == 0:
        return
    lowest, highest = (int(bound) for bound in torch.aminmax(index))
    if lowest < 0 or highest >= limit:
        raise ShapeError(f"{name} runs from {lowest} to {highest}; need 0 to {limit - 1}")


def require_finite(x: Tensor, name: str) -> None:
    """Require every entry of x to be a number.

    Raises:
        NonFiniteError: one is NaN or infinite.
    """
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity; need finite numbers")
