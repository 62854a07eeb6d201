"""Results as the wire has them. Computes no score; it only says what was computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Weights
from quantized_lm.errors import InputError
from quantized_lm.scoring import TextScore, Usage
from service.errors import describe
from service.listwork import RankedList
from service.schemas import (
    EffectiveWeights,
    FailedUtterance,
    Options,
    RankedHypothesis,
    RescoredUtterance,
    RescoreRequest,
    ScoreComponents,
    ScoredText,
    ScoreRequest,
    TokenScore,
    UsageCounts,
    Utterance,
    WordScore,
)


def reply_lists(
    request: RescoreRequest,
    ranked: Sequence[RankedList | InputError],
    models: Sequence[LoadedModel],
) -> list[RescoredUtterance | FailedUtterance]:
    """The `results` of a reply, in the order of the request's utterances."""
    return [
        FailedUtterance(id=utterance.id, error=describe(one))
        if isinstance(one, InputError)
        else rescored_utterance(utterance, one, models, request.options)
        for utterance, one in zip(request.utterances, ranked, strict=True)
    ]


def rescored_utterance(
    utterance: Utterance, ranked: RankedList, models: Sequence[LoadedModel], options: Options
) -> RescoredUtterance:
    """One list in its new order, cut to `options.n_best`."""
    order = ranked.ranking.order.tolist()
    return RescoredUtterance(
        id=utterance.id,
        changed=order[0] != 0,
        degraded=[],
        hypotheses=[
            _ranked_hypothesis(utterance, ranked, models, options, rank)
            for rank in range(1, 1 + min(options.n_best or len(order), len(order)))
        ],
    )


def _ranked_hypothesis(
    utterance: Utterance,
    ranked: RankedList,
    models: Sequence[LoadedModel],
    options: Options,
    rank: int,
) -> RankedHypothesis:
    position = int(ranked.ranking.order[rank - 1])
    hypothesis = utterance.hypotheses[position]
    components = ranked.components
    scores = {model.name: ranked.scores[model.name].scores[position] for model in models}
    return RankedHypothesis(
        rank=rank,
        input_rank=position + 1,
        text=hypothesis.text,
        score=float(ranked.ranking.total[position]),
        posterior=float(ranked.ranking.posterior[position]),
        components=ScoreComponents(
            am=hypothesis.am_score,
            graph=hypothesis.graph_score,
            lm={name: float(column[position]) for name, column in components.lm.items()},
            extra=hypothesis.extra,
        ),
        num_words=int(components.words[position]),
        num_tokens=int(components.tokens[position]),
        num_chars=int(components.chars[position]),
        oov=list(scores[models[0].name].oov),
        tokens={m.name: token_scores(scores[m.name], m) for m in models}
        if options.return_tokens
        else None,
        words={m.name: word_scores(scores[m.name]) for m in models}
        if options.return_words
        else None,
    )


def scored_text(
    text: str, score: TextScore, model: LoadedModel, request: ScoreRequest
) -> ScoredText:
    """Probability of one text, with the details that were asked for."""
    ends = int(request.final)
    return ScoredText(
        text=text,
        log_prob=score.log_prob,
        num_tokens=score.num_tokens,
        num_words=len(score.words),
        perplexity_per_token=perplexity(score.log_prob, score.num_tokens + ends),
        perplexity_per_word=perplexity(score.log_prob, len(score.words) + ends),
        oov=list(score.oov),
        tokens=token_scores(score, model) if request.return_tokens else None,
        words=word_scores(score) if request.return_words else None,
    )


def token_scores(score: TextScore, model: LoadedModel) -> list[TokenScore]:
    """Every scored token of one text."""
    return [
        TokenScore(piece=model.tokenizer.piece(token), id=token, log_prob=log_prob)
        for token, log_prob in zip(score.token_ids, score.token_log_probs.tolist(), strict=True)
    ]


def word_scores(score: TextScore) -> list[WordScore]:
    """Every word of one text as the LM reads it."""
    return [
        WordScore(word=word, log_prob=log_prob)
        for word, log_prob in zip(score.words, score.word_log_probs(), strict=True)
    ]


def perplexity(log_prob: float, count: int) -> float | None:
    """exp(-log_prob / count); None if count is 0 or the result is beyond float64."""
    if count == 0:
        return None
    try:
        return math.exp(-log_prob / count)
    except OverflowError:
        return None


def effective_weights(weights: Weights) -> EffectiveWeights:
    """The weights that were used."""
    return EffectiveWeights(**dataclasses.asdict(weights))


def total_usage(usages: Iterable[Usage]) -> UsageCounts:
    """Work of a whole request."""
    listed = list(usages)
    tokens = sum(usage.tokens for usage in listed)
    tree_nodes = sum(usage.tree_nodes for usage in listed)
    return UsageCounts(
        hypotheses=sum(usage.hypotheses for usage in listed),
        tokens=tokens,
        tree_nodes=tree_nodes,
        cache_hits=sum(usage.cache_hits for usage in listed),
        sharing=tokens / tree_nodes if tree_nodes else 1.0,
    )
