from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantized_lm.errors import DataError
from quantized_lm.pipeline.measured import (
    Estimate,
    MeasuredRows,
    estimate_mean,
    estimate_ratio,
)


def test_standard_errors_are_those_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 60, (500, 40)).astype(np.float64)
    totals = counts * 0.3 + rng.normal(0, 2, counts.shape)
    ratios = [estimate_ratio(t, c) for t, c in zip(totals, counts, strict=True)]
    means = [estimate_mean(t) for t in totals]
    for found in (ratios, means):
        claimed = np.mean([one.standard_error for one in found])
        assert claimed == pytest.approx(np.std([one.mean for one in found]), rel=0.1)


def test_the_error_of_one_value_is_infinite() -> None:
    assert estimate_mean(np.array([2.0])) == Estimate(2.0, np.inf)
    assert Estimate(2.0, 0.5).scaled(-2.0) == Estimate(-4.0, 1.0)


def test_rows_survive_a_file_and_are_forgotten_under_another_key(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.json"
    rows = MeasuredRows(path, "ours")
    assert len(rows) == 0
    rows.extend([[1.0, 2.0], [3.0, 4.0]])
    assert MeasuredRows(path, "ours").values().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert len(MeasuredRows(path, "theirs")) == 0
    path.write_text("[]")
    with pytest.raises(DataError, match=r"rows\.json cannot be read .* delete it"):
        MeasuredRows(path, "ours")
    rows.delete()
    rows.delete()
    assert not path.exists()
