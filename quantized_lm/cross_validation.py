"""What tuned weights are worth on lists they have not seen, from the dev set alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantized_lm.tuning import TuningSet, count_errors, tune

FOLDS = 5


def folds_of(groups: Sequence[str], *, folds: int = FOLDS, seed: int = 0) -> NDArray[np.int64]:
    """The fold of each list, all of a group in one, dealt out by chance.

    Where there are fewer groups than folds each list is a group of its own, and where there are
    fewer lists than folds each has a fold of its own.

    Args:
        groups: U names, the speaker of each list.
        folds: how many at most.
        seed: same seed, same folds.

    Returns:
        (U,) int64, from 0 on, none left out.
    """
    folds = min(folds, len(groups) + 1)  # more would change nothing, and may be no int64
    _, group = np.unique(np.array(groups), return_inverse=True)
    if not keeps_groups(groups, folds=folds):
        group = np.arange(len(groups))
    places = np.random.default_rng(seed).permutation(int(group.max(initial=-1)) + 1)
    return np.asarray(places[group] % folds, np.int64)


def keeps_groups(groups: Sequence[str], *, folds: int) -> bool:
    """Whether `folds_of` has enough groups to split none of them."""
    return len(set(groups)) >= folds


def unseen_errors(
    data: TuningSet,
    fold: NDArray[np.int64],
    start: Mapping[str, float],
    free: Sequence[str],
    *,
    restarts: int = 8,
    seed: int = 0,
) -> Iterator[int]:
    """Fold by fold its word errors with weights that were tuned on all the others.

    Args:
        data: the stored scores of U lists.
        fold: (U,) of each list, at least two different ones.
        start: as in `tune`, and so `free`, `restarts` and `seed`.
    """
    for each in np.unique(fold):
        found = tune(_lists(data, fold != each), start, free, restarts=restarts, seed=seed)
        weights = np.array([found.weights[name] for name in data.names])
        yield count_errors(_lists(data, fold == each), weights)


def _lists(data: TuningSet, chosen: NDArray[np.bool_]) -> TuningSet:
    rows = np.repeat(chosen, data.sizes)
    kept = data.sizes[chosen]
    # The words stay those of the whole set: only the flatness of a result is counted in them.
    return replace(
        data,
        features=data.features[rows],
        errors=data.errors[rows],
        starts=np.cumsum(kept) - kept,
    )
