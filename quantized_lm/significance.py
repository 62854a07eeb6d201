"""Is one system better than another on the same utterances? Two answers, both paired.

MAPSSWE, the matched-pairs sentence-segment word error test of NIST's sc_stats (Gillick and Cox,
ICASSP 1989; Pallett et al., ICASSP 1990), and a bootstrap interval over utterances (Bisani and
Ney, ICASSP 2004).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import ShapeError
from quantized_lm.wer import slot_errors

Ints = NDArray[np.int64]
BOUNDARY_WORDS = 2  # words both systems have right that end a segment; sc_stats' default
_CHUNK = 1 << 22  # counts drawn at a time, so that memory does not grow with the replications


@dataclass(frozen=True)
class Mapsswe:
    """Outcome of the test.

    Attributes:
        segments: number of segments, each with an error of at least one system.
        mean: mean over the segments of errors of the first system less those of the second.
        z: mean over its standard error; 0 where all differences are equal.
        p: two-sided probability of a |z| at least this large if the systems were equal.
        has_variance: whether the differences are not all equal. If they are there is no test, and
            z and p are 0 and 1, as sc_stats has them.
    """

    segments: int
    mean: float
    z: float
    p: float
    has_variance: bool

    @property
    def remark(self) -> str:
        """What the numbers do not say, on one line: that p is no outcome of a test; or ""."""
        if self.has_variance or self.mean == 0.0:
            return ""
        return (
            f"no test: all segments ({self.segments}) differ by {self.mean:+g} errors, so their "
            "variance is zero, and p 1 says nothing"
        )


@dataclass(frozen=True)
class BootstrapInterval:
    """WER of the second system less that of the first, resampled.

    Attributes:
        difference: as observed, a fraction; below 0 the second system is better.
        low: lower end of the interval.
        high: upper end of the interval.
        level: share of the replications inside.
        probability_better: share of the replications in which the second system has fewer errors.
    """

    difference: float
    low: float
    high: float
    level: float
    probability_better: float

    @property
    def remark(self) -> str:
        """What the numbers do not say, on one line: that the interval is none; or ""."""
        if self.low < self.high or self.difference == 0.0:
            return ""
        return (
            "no interval: all utterances change alike, or there is one, so that every replication "
            "is the same, which says nothing"
        )


def mapsswe(references: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Mapsswe:
    """Matched pairs over the segments of all utterances, normal approximation, two-sided.

    Segments are those of sc_stats for the same alignment (`slot_errors` says when sclite's is
    another), except that insertions of the second system after the last reference word are counted.

    Raises:
        ShapeError: the three lists differ in length.
    """
    _require_one_length(len(references), len(first), len(second))
    differences = np.array(
        [
            difference
            for texts in zip(references, first, second, strict=True)
            for difference in segment_differences(*texts)
        ],
        np.float64,
    )
    if differences.size == 0:
        return Mapsswe(segments=0, mean=0.0, z=0.0, p=1.0, has_variance=False)
    mean = float(differences.mean())
    deviation = float(differences.std(ddof=1)) if differences.size > 1 else 0.0
    z = mean / (deviation / math.sqrt(differences.size)) if deviation > 0.0 else 0.0
    p = math.erfc(abs(z) / math.sqrt(2.0))
    return Mapsswe(differences.size, mean, z, p, has_variance=deviation > 0.0)


def segment_differences(reference: str, first: str, second: str) -> list[int]:
    """Errors of the first system less those of the second, per segment of one utterance.

    A segment begins at an error of either system and ends once `BOUNDARY_WORDS` words in a row
    are right in both, with nothing inserted between them.
    """
    slots = [slot_errors(reference, text) for text in (first, second)]
    differences: list[int] = []
    difference, good, is_open = 0, 0, False
    for position, (errors_first, errors_second) in enumerate(zip(*slots, strict=True)):
        if errors_first or errors_second:
            difference += errors_first - errors_second
            good, is_open = 0, True
        elif is_open and position % 2:  # a word, not a gap
            good += 1
            if good == BOUNDARY_WORDS:
                differences.append(difference)
                difference, is_open = 0, False
    return [*differences, difference] if is_open else differences


def bootstrap_interval(
    first_errors: Ints,
    second_errors: Ints,
    words: Ints,
    *,
    replications: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> BootstrapInterval:
    """Percentile interval of the difference in pooled WER; utterances are drawn with replacement.

    Args:
        first_errors: (U,) word errors per utterance of the first system.
        second_errors: (U,) the same of the second.
        words: (U,) reference words per utterance.
        replications: how many sets of U utterances are drawn.
        level: share of the replications inside the interval, 0 to 1.
        seed: the same seed gives the same interval.

    Raises:
        ShapeError: the arrays differ in length, or there are no reference words.
    """
    _require_one_length(words.size, first_errors.size, second_errors.size)
    if not words.sum():
        raise ShapeError("0 reference words; need at least 1 to speak of a word error rate")
    change = second_errors - first_errors
    table = np.stack([change, words], axis=1).astype(np.float64)
    generator = np.random.default_rng(seed)
    shares = np.full(words.size, 1.0 / words.size)
    rates = []
    step = max(1, _CHUNK // words.size)
    for start in range(0, replications, step):
        size = min(step, replications - start)
        sums = generator.multinomial(words.size, shares, size=size) @ table
        rates.append(sums[:, 0] / np.maximum(sums[:, 1], 1.0))
    sample = np.concatenate(rates)
    low, high = np.quantile(sample, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return BootstrapInterval(
        difference=float(change.sum() / words.sum()),
        low=float(low),
        high=float(high),
        level=level,
        probability_better=float((sample < 0.0).mean()),
    )


def _require_one_length(references: int, first: int, second: int) -> None:
    if not references == first == second:
        raise ShapeError(
            f"{references} references, {first} and {second} answers; need one of each an utterance"
        )
