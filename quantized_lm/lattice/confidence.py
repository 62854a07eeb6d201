"""How sure a word is: the share of all that was scored which agrees with it. Knows no LM."""

from __future__ import annotations

from collections.abc import Sequence

import kaldialign
import numpy as np
from numpy.typing import NDArray

_GAP = "\0"
_NEGLIGIBLE = 1e-6  # a sequence of a smaller posterior is not aligned: it could not be seen


def word_confidences(
    words: Sequence[str], sequences: Sequence[Sequence[str]], posteriors: NDArray[np.float64]
) -> list[float]:
    """For each word, the posteriors of the sequences in which the same word is aligned to it.

    Aligned with the fewest word errors. Sequences of a posterior below 1e-6 do not count.

    Args:
        words: of one sequence.
        sequences: all that share the posterior, that one among them.
        posteriors: (F,) of each, at most 1 together.
    """
    confidences = np.zeros(len(words))
    for other, posterior in zip(sequences, posteriors.tolist(), strict=True):
        if posterior < _NEGLIGIBLE:
            continue
        pairs = kaldialign.align(list(words), list(other), _GAP)
        agrees = [own == its for own, its in pairs if own != _GAP]
        confidences[agrees] += posterior
    return [min(float(one), 1.0) for one in confidences]
