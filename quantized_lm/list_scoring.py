"""The n-best lists of a corpus under one LM, several lists in one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from quantized_lm.combine import Weights, combine, require_scores
from quantized_lm.errors import DataError, naming
from quantized_lm.nbest import Utterance
from quantized_lm.scored import LmColumn, components_of, join, result_record, unranked_record
from quantized_lm.scoring import (
    ListScores,
    PreparedList,
    ScoreRequest,
    TextScorer,
    longest_text,
    prepare,
    run_batch,
)

Json = dict[str, object]
_BATCH_TOKENS = 1024  # larger ones were slower on two cores, and take more memory


def rescore_utterances(
    utterances: Iterable[Utterance],
    scorer: TextScorer,
    weights: Weights,
    *,
    keeps_failed: bool = False,
) -> Iterator[Json]:
    """Result lines of all utterances in order, several lists in one forward pass.

    Args:
        keeps_failed: a list that cannot be ranked keeps the decoder's order instead of ending all.

    Raises:
        DataError: a list cannot be ranked; the message names the utterance and the field.
    """
    for batch in _batches(utterances, scorer):
        scored = iter(run_batch([one for _, one in batch if isinstance(one, PreparedList)], scorer))
        for utterance, prepared in batch:
            scores = next(scored) if isinstance(prepared, PreparedList) else prepared
            try:
                record = _ranked_record(utterance, scorer.name, scores, weights)
            except DataError as error:
                if not keeps_failed:
                    raise
                record = unranked_record(utterance, str(error))
            yield record


def require_rankable(utterance: Utterance, scorer: TextScorer, weights: Weights) -> None:
    """Pass if `rescore_utterances` can rank a list, which is known without running the model.

    Raises:
        InputError: a text is too long, or a score is missing that counts.
    """
    texts = [hypothesis.text for hypothesis in utterance.hypotheses]
    longest_text(scorer.tokenizer.encode_all(texts), scorer)
    unknown = [0] * len(texts)
    column = LmColumn({scorer.name: unknown}, unknown, unknown, ())
    require_scores(components_of(join(utterance, column)), weights)


def _ranked_record(
    utterance: Utterance, name: str, scores: ListScores | DataError, weights: Weights
) -> Json:
    """The line of a list, if it can be ranked."""
    if isinstance(scores, DataError):
        raise scores
    column = _lm_column(name, scores)
    with naming(utterance.id):
        ranking = combine(components_of(join(utterance, column)), weights)
    return result_record(utterance, column, ranking)


def _lm_column(name: str, scores: ListScores) -> LmColumn:
    """Scores of one list under one LM."""
    encoded = scores.prepared.encoded
    return LmColumn(
        scores={name: scores.log_prob.tolist()},
        num_words=encoded.num_words.tolist(),
        num_tokens=encoded.num_tokens.tolist(),
        oov=[scores.oov.get(position, ()) for position in range(len(scores.log_prob))],
    )


def _batches(
    utterances: Iterable[Utterance], scorer: TextScorer
) -> Iterator[list[tuple[Utterance, PreparedList | DataError]]]:
    """Lists for one pass each, in order; those that cannot be prepared as the reason why."""
    batch: list[tuple[Utterance, PreparedList | DataError]] = []
    cost = 0
    for utterance in utterances:
        request = ScoreRequest(
            texts=tuple(hypothesis.text for hypothesis in utterance.hypotheses),
            context=utterance.context,
            final=utterance.final,
        )
        try:
            with naming(utterance.id):
                prepared = prepare(request, scorer)
        except DataError as error:
            batch.append((utterance, error))
            continue
        if batch and cost + prepared.cost_tokens > _BATCH_TOKENS:
            yield batch
            batch, cost = [], 0
        batch.append((utterance, prepared))
        cost += prepared.cost_tokens
    if batch:
        yield batch
