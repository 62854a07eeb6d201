"""Word error rate, pooled over a set, of one answer per utterance or of whole lists.

Words are what stands between white space: no case folding, no filler or compound rules.
`spelling_remark` says where that counts what nobody said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import kaldialign
import numpy as np
from numpy.typing import NDArray

from quantized_lm.tokenizer import TextRules

Ints = NDArray[np.int64]
_GAP = "\0"


@dataclass(frozen=True)
class WordErrors:
    """Errors of a set of utterances against `words` reference words."""

    substitutions: int
    deletions: int
    insertions: int
    words: int
    utterances: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word, a fraction; NaN where there are no reference words."""
        return self.errors / self.words if self.words else float("nan")


def pooled(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """Errors of (reference, hypothesis) texts, counted with a cost of 1 each and added up."""
    totals = np.zeros(4, np.int64)
    utterances = 0
    for reference, hypothesis in pairs:
        words = reference.split()
        counts = kaldialign.edit_distance(words, hypothesis.split())
        totals += [counts["sub"], counts["del"], counts["ins"], len(words)]
        utterances += 1
    substitutions, deletions, insertions, number = (int(total) for total in totals)
    return WordErrors(substitutions, deletions, insertions, number, utterances)


def spelling_remark(references: Sequence[str], texts: Sequence[str]) -> str:
    """What to say where most errors are of case, punctuation or noises, on one line; or ""."""
    as_written = pooled(zip(references, texts, strict=True))
    rules = TextRules()
    as_said = pooled(
        (" ".join(rules.said(reference)), " ".join(rules.said(text)))
        for reference, text in zip(references, texts, strict=True)
    )
    if 2 * as_said.errors >= as_written.errors:
        return ""
    return (
        f"the first pass has {as_written.errors} word errors, and {as_said.errors} without case, "
        "punctuation and noises; words are compared as they stand, so write references and "
        "hypotheses alike"
    )


def error_counts(reference: str, texts: Sequence[str]) -> Ints:
    """(H,) int64, word errors of each text against one reference; equal texts are counted once."""
    words = reference.split()
    known = {
        text: int(kaldialign.edit_distance(words, text.split())["total"])
        for text in dict.fromkeys(texts)
    }
    return np.array([known[text] for text in texts], np.int64)


def oracle(reference: str, texts: Sequence[str]) -> int:
    """Position of the text with the fewest errors, the first of equals."""
    return int(np.argmin(error_counts(reference, texts)))


def slot_errors(reference: str, hypothesis: str) -> list[int]:
    """(2n + 1,) errors at each place of n reference words: gap, word, gap, word, ..., gap.

    A gap holds its insertions, a word 1 if it is wrong or missing. Aligned with sclite's costs
    (substitution 4, insertion and deletion 3). Where several alignments cost the same, as many do
    in texts that are half wrong, sclite may choose another one.
    """
    words = reference.split()
    slots = [0] * (2 * len(words) + 1)
    position = 0
    for expected, got in kaldialign.align(words, hypothesis.split(), _GAP, sclite_mode=True):
        if expected == _GAP:
            slots[2 * position] += 1
        else:
            slots[2 * position + 1] = int(expected != got)
            position += 1
    return slots
