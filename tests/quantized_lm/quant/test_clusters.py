from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quantized_lm.quant.clusters import MAX_CLUSTERS, find_clusters

RNG = np.random.default_rng(11)


def codes_of(deviation: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Gaussian weights of these standard deviations, rounded to five levels."""
    weight = RNG.standard_normal(deviation.shape) * deviation
    return (np.clip(np.rint(weight), -2, 2) + 2).astype(np.uint8)


def test_rows_and_columns_of_like_variance_are_found() -> None:
    narrow_rows, narrow_columns = RNG.random(300) < 0.5, RNG.random(200) < 0.5
    deviation = np.where(narrow_rows, 0.4, 1.0)[:, None] * np.where(narrow_columns, 0.6, 1.0)
    clusters = find_clusters(codes_of(deviation), 5)
    assert (clusters.num_rows, clusters.num_columns) == (2, 2)
    for labels, truth in ((clusters.rows, narrow_rows), (clusters.columns, narrow_columns)):
        agreement = np.mean(labels == truth)
        assert max(agreement, 1 - agreement) > 0.99


def test_noise_without_structure_is_one_cluster() -> None:
    clusters = find_clusters(codes_of(np.ones((256, 256))), 5)
    assert (clusters.num_rows, clusters.num_columns) == (1, 1)
    assert not clusters.rows.any()
    assert not clusters.columns.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 3), (MAX_CLUSTERS, 40)])
def test_matrices_smaller_than_the_clusters_are_labeled(shape: tuple[int, int]) -> None:
    clusters = find_clusters(codes_of(np.ones(shape)), 5)
    assert (clusters.rows.shape, clusters.columns.shape) == ((shape[0],), (shape[1],))
    assert clusters.rows.max() < clusters.num_rows <= MAX_CLUSTERS
    assert clusters.columns.max() < clusters.num_columns <= MAX_CLUSTERS


def test_large_tables_are_not_repeated() -> None:
    clusters = find_clusters(RNG.integers(0, 200, (50, 60)).astype(np.uint8), 256)
    assert (clusters.num_rows, clusters.num_columns) == (1, 1)
