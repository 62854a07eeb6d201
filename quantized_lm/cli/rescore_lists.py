"""Rescoring lists with a model in this process: lists in, result lines out, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Weights, combine
from quantized_lm.list_scoring import naming, score_utterances
from quantized_lm.nbest import Utterance
from quantized_lm.scored import components_of, join, result_record

Json = dict[str, object]


@dataclass(frozen=True)
class Corpus:
    """Lists to rescore, and by how many.

    Attributes:
        source: file of lists.
        first_pass: key of FIRST_PASS.
        model: artifact folder; None is the bundled one.
        workers: processes, at most; 0 is one per CPU. Only where an engine has several.
    """

    source: Path
    first_pass: str
    model: Path | None = None
    workers: int = 0


def rescore_local(
    utterances: Iterable[Utterance], loaded: LoadedModel, weights: Weights
) -> Iterator[Json]:
    """Result lines of all utterances in order, several lists in one forward pass.

    Raises:
        DataError: a list cannot be ranked; the message names the utterance and the field.
    """
    for utterance, column in score_utterances(utterances, loaded):
        with naming(utterance.id):
            ranking = combine(components_of(join(utterance, column)), weights)
        yield result_record(utterance, column, ranking)
