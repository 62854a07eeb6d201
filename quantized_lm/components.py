"""What is known of each hypothesis of a list: its scores and lengths, column by column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import NonFiniteError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """The scores of one list of H hypotheses.

    In `am`, `graph` and `extra`, None stands for a column nobody gave and NaN for a hypothesis
    that lacks it (`score_column` makes such columns and refuses a NaN that was sent).

    Attributes:
        am: (H,) float64 or None, nats: acoustic, or the decoder's whole first-pass score.
        graph: (H,) float64 or None, nats: the first pass's LM or graph part.
        lm: LM name -> (H,) float64, nats.
        extra: name -> (H,) float64 or None.
        words: (H,) int64, words per hypothesis.
        tokens: (H,) int64, LM tokens per hypothesis without `</s>`.
        chars: (H,) int64, characters per hypothesis.
    """

    am: Floats | None
    graph: Floats | None
    lm: Mapping[str, Floats]
    extra: Mapping[str, Floats | None]
    words: Ints
    tokens: Ints
    chars: Ints


def score_column(values: Sequence[float | None], field_name: str) -> Floats | None:
    """One score of every hypothesis as a column: None if nobody gave it, NaN where it is missing.

    Raises:
        NonFiniteError: a value is NaN or +infinity; the pointer is like "/hypotheses/2/am_score".
    """
    if values.count(None) == len(values):
        return None
    column = np.array(values, np.float64)  # None becomes NaN
    if (column < np.inf).all():
        return column
    for position, value in enumerate(values):
        if value is not None and not value < math.inf:
            raise NonFiniteError(
                f"{field_name} is {value}; need a number below infinity",
                pointer=f"/hypotheses/{position}/{field_name}",
            )
    return column


def escape(name: str) -> str:
    """A name as one step of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
