"""Rescoring lists with a model in this process: lists in, result lines out, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantized_lm.artifact import LoadedModel
from quantized_lm.cli.console import explain
from quantized_lm.combine import Weights, combine
from quantized_lm.errors import DataError, InputError
from quantized_lm.nbest import Utterance
from quantized_lm.scored import LmColumn, components_of, join, result_record
from quantized_lm.scoring import ListScores, PreparedList, ScoreRequest, prepare, run_batch

Json = dict[str, object]
_BATCH_TOKENS = 1024  # larger ones were slower on two cores, and take more memory


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
    for batch in _batches(utterances, loaded):
        lists = run_batch([prepared for _, prepared in batch], loaded)
        for (utterance, _), scores in zip(batch, lists, strict=True):
            column = lm_column(loaded.name, scores)
            with _named(utterance):
                ranking = combine(components_of(join(utterance, column)), weights)
            yield result_record(utterance, column, ranking)


def lm_column(name: str, scores: ListScores) -> LmColumn:
    """Scores of one list under one LM."""
    encoded = scores.prepared.encoded
    return LmColumn(
        scores={name: scores.log_prob.tolist()},
        num_words=encoded.num_words.tolist(),
        num_tokens=encoded.num_tokens.tolist(),
        oov=[scores.oov.get(position, ()) for position in range(len(scores.log_prob))],
    )


@contextmanager
def _named(utterance: Utterance) -> Iterator[None]:
    """Say which utterance a fault is in."""
    try:
        yield
    except InputError as error:
        raise DataError(f"utterance {utterance.id!r}: {explain(error)}") from None


def _batches(
    utterances: Iterable[Utterance], loaded: LoadedModel
) -> Iterator[list[tuple[Utterance, PreparedList]]]:
    batch: list[tuple[Utterance, PreparedList]] = []
    cost = 0
    for utterance in utterances:
        request = ScoreRequest(
            texts=tuple(hypothesis.text for hypothesis in utterance.hypotheses),
            context=utterance.context,
            final=utterance.final,
        )
        with _named(utterance):
            prepared = prepare(request, loaded)
        if batch and cost + prepared.cost_tokens > _BATCH_TOKENS:
            yield batch
            batch, cost = [], 0
        batch.append((utterance, prepared))
        cost += prepared.cost_tokens
    if batch:
        yield batch
