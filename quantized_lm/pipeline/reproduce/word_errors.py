"""What rescored speech says of a model: word errors on lists, agreement on lattices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantized_lm.errors import DataError
from quantized_lm.pipeline.reproduce.speech import Answers, BestPaths
from quantized_lm.significance import Mapsswe, mapsswe
from quantized_lm.wer import WordErrors, pooled

SIGNIFICANT_P = 0.05


@dataclass(frozen=True)
class HalfErrors:
    """Word errors on a part of the utterances, as shares of its reference words.

    Attributes:
        words: of the references.
        wer: of the model. float_wer: of the float model. first_pass_wer: of the decoder's first.
        oracle_wer: of the best hypothesis of each list.
        p: MAPSSWE of the model against the float model, two-sided; where all segments differ alike,
            which leaves no such test, the sign test. z: above 0 where the float model has more
            errors.
        mean: errors per segment of the float model less the model's. has_variance: whether not all
            segments differ alike. An earlier report may lack both.
    """

    utterances: int
    words: int
    wer: float
    float_wer: float
    first_pass_wer: float
    oracle_wer: float
    z: float
    p: float
    mean: float = 0.0
    has_variance: bool = True

    @property
    def is_worse(self) -> bool:
        """Significantly more errors than the float model."""
        difference = self.z if self.has_variance else self.mean
        return difference < 0 and self.p < SIGNIFICANT_P


@dataclass(frozen=True)
class ListErrors:
    """A model on one set of lists.

    Attributes:
        name: of the lists. formula: with the weights that were tuned for this model.
        held_out: on the utterances that weights were not tuned on. every: on all of them.
    """

    name: str
    formula: str
    held_out: HalfErrors
    every: HalfErrors


@dataclass(frozen=True)
class PathAgreement:
    """A model on one set of lattices.

    Attributes:
        name: of the lattices.
        words: of the float model's best paths. differing: edits from those to the model's, as a
            share of them.
        degraded: searches that a budget ended.
    """

    name: str
    lattices: int
    words: int
    differing: float
    degraded: int


def list_errors(name: str, of_model: Answers, of_float: Answers) -> ListErrors:
    """A model's answers beside the float model's.

    Raises:
        DataError: they are not of the same utterances.
    """
    if of_model.references != of_float.references:
        raise DataError(f"{name}: the answers are not of the same lists; delete their folders")
    everywhere = [True] * len(of_model.references)
    return ListErrors(
        name=name,
        formula=of_model.formula,
        held_out=_errors(of_model, of_float, of_model.is_held_out),
        every=_errors(of_model, of_float, everywhere),
    )


def path_agreement(name: str, of_model: BestPaths, of_float: BestPaths) -> PathAgreement:
    """A model's best paths beside the float model's.

    Raises:
        DataError: they are not of the same utterances.
    """
    if of_model.utterances != of_float.utterances:
        raise DataError(f"{name}: the paths are not of the same lattices; delete their folders")
    edits = pooled(zip(of_float.texts, of_model.texts, strict=True))
    return PathAgreement(name, edits.utterances, edits.words, edits.rate, of_model.degraded)


def _errors(of_model: Answers, of_float: Answers, chosen: Sequence[bool]) -> HalfErrors:
    def part(texts: Sequence[str]) -> list[str]:
        return [text for text, is_chosen in zip(texts, chosen, strict=True) if is_chosen]

    references = part(of_model.references)

    def errors(texts: Sequence[str]) -> WordErrors:
        return pooled(zip(references, part(texts), strict=True))

    own = errors(of_model.answers)
    test = mapsswe(references, part(of_float.answers), part(of_model.answers))
    return HalfErrors(
        utterances=own.utterances,
        words=own.words,
        wer=own.rate,
        float_wer=errors(of_float.answers).rate,
        first_pass_wer=errors(of_model.first_pass).rate,
        oracle_wer=errors(of_model.oracle).rate,
        z=test.z,
        p=_probability(test),
        mean=test.mean,
        has_variance=test.has_variance,
    )


def _probability(test: Mapsswe) -> float:
    """Of so clear a difference between equal models; without variance all signs are the same."""
    if test.has_variance or test.mean == 0.0:
        return test.p
    return 2.0 ** (1 - test.segments)
