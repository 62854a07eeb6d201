"""Means with their standard errors, and the rows behind them, saved as they are measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import DataError
from quantized_lm.files import write_atomic


@dataclass(frozen=True)
class Estimate:
    """A mean over a sample, and the standard error of it."""

    mean: float
    standard_error: float

    def scaled(self, factor: float) -> Estimate:
        """Of the quantity times a number."""
        return Estimate(self.mean * factor, self.standard_error * abs(factor))


def estimate_mean(values: NDArray[np.float64]) -> Estimate:
    """Of independent values (n,); the error of fewer than two is infinite."""
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(float(values.mean()), error)


def estimate_ratio(totals: NDArray[np.float64], counts: NDArray[np.float64]) -> Estimate:
    """Sum of totals over sum of counts, of independent clusters (n,): nats over tokens by window.

    The error is that of the linearized ratio (Cochran, Sampling Techniques, 6.4).
    """
    ratio = float(totals.sum() / counts.sum())
    residual = estimate_mean(totals - ratio * counts)
    return Estimate(ratio, residual.standard_error / float(counts.mean()))


class MeasuredRows:
    """Rows of numbers in a file, so that a killed measurement goes on where it was.

    Args:
        path: of the file; what it holds under another key is forgotten.
        key: names what is measured.

    Raises:
        DataError: the file holds something else.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self._rows: list[list[float]] = []
        if path.exists():
            try:
                saved = json.loads(path.read_bytes())
                same, rows = saved["key"] == key, saved["rows"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} cannot be read ({error}); delete it") from None
            self._rows = rows if same else []

    def __len__(self) -> int:
        return len(self._rows)

    def extend(self, rows: Sequence[Sequence[float]]) -> None:
        """Add rows and save all of them."""
        self._rows.extend([float(value) for value in row] for row in rows)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"key": self._key, "rows": self._rows}
        write_atomic(self._path, json.dumps(content).encode())

    def values(self) -> NDArray[np.float64]:
        """(rows, columns) float64."""
        return np.asarray(self._rows, np.float64)

    def delete(self) -> None:
        """Once what was made of them is saved."""
        self._path.unlink(missing_ok=True)
