"""Results as the wire has them. Computes no score; it only says what was computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Weights
from quantized_lm.errors import InputError
from quantized_lm.scoring import ListScores, TextScore, Usage
from service.errors import describe
from service.listwork import RankedList, UnrankedList
from service.schemas import (
    EffectiveWeights,
    FailedUtterance,
    Options,
    RankedHypothesis,
    RescoredUtterance,
    RescoreRequest,
    ScoredText,
    ScoreRequest,
    TokenScore,
    UsageCounts,
    Utterance,
    WordScore,
)


def reply_lists(
    request: RescoreRequest,
    ranked: Sequence[RankedList | UnrankedList | InputError],
    models: Sequence[LoadedModel],
) -> list[RescoredUtterance | FailedUtterance]:
    """The `results` of a reply, in the order of the request's utterances."""
    return [
        _result(utterance, one, models, request.options)
        for utterance, one in zip(request.utterances, ranked, strict=True)
    ]


def _result(
    utterance: Utterance,
    one: RankedList | UnrankedList | InputError,
    models: Sequence[LoadedModel],
    options: Options,
) -> RescoredUtterance | FailedUtterance:
    if isinstance(one, InputError):
        return FailedUtterance(id=utterance.id, error=describe(one))
    if isinstance(one, UnrankedList):
        return first_pass_utterance(utterance, one, models, options)
    return rescored_utterance(utterance, one, models, options)


def rescored_utterance(
    utterance: Utterance, ranked: RankedList, models: Sequence[LoadedModel], options: Options
) -> RescoredUtterance:
    """One list in its new order, cut to `options.n_best`."""
    for of_lm in ranked.scores.values():
        require_finite(of_lm)
    best_first = ranked.ranking.order[: options.n_best].tolist()
    hypotheses = _ranked_hypotheses(utterance, ranked, models, best_first)
    if not gives_posterior(options):
        for hypothesis in hypotheses:
            del hypothesis["posterior"]
    if options.return_tokens or options.return_words:
        for position, hypothesis in zip(best_first, hypotheses, strict=True):
            scores = [(model, ranked.scores[model.name].detail(position)) for model in models]
            if options.return_tokens:
                hypothesis["tokens"] = {m.name: token_scores(score, m) for m, score in scores}
            if options.return_words:
                hypothesis["words"] = {m.name: word_scores(score) for m, score in scores}
    return {
        "id": utterance.id,
        "changed": best_first[0] != 0,
        "degraded": [],
        "hypotheses": hypotheses,
    }


def first_pass_utterance(
    utterance: Utterance, unranked: UnrankedList, models: Sequence[LoadedModel], options: Options
) -> RescoredUtterance:
    """One list in the decoder's order, cut to `options.n_best`, without a score of ours."""
    components, oov = unranked.checked.components, unranked.checked.trees[0].oov
    words, tokens = components.words.tolist(), components.tokens.tolist()
    hypotheses: list[RankedHypothesis] = []
    for position, hypothesis in enumerate(utterance.hypotheses[: options.n_best]):
        first_pass: RankedHypothesis = {
            "rank": position + 1,
            "input_rank": position + 1,
            "text": hypothesis.text,
            "score": None,
            "components": {
                "am": hypothesis.am_score,
                "graph": hypothesis.graph_score,
                "lm": dict.fromkeys((model.name for model in models), None),
                "extra": hypothesis.extra,
            },
            "num_words": words[position],
            "num_tokens": tokens[position],
            "num_chars": len(hypothesis.text),
            "oov": list(oov.get(position, ())),
        }
        if gives_posterior(options):
            first_pass["posterior"] = None
        hypotheses.append(first_pass)
    return {
        "id": utterance.id,
        "changed": False,
        "degraded": [unranked.reason],
        "hypotheses": hypotheses,
    }


def gives_posterior(options: Options) -> bool:
    """Whether hypotheses come with their share of the whole list, which then is scored whole."""
    return options.n_best != 1 if options.return_posterior is None else options.return_posterior


def _ranked_hypotheses(
    utterance: Utterance,
    ranked: RankedList,
    models: Sequence[LoadedModel],
    best_first: Sequence[int],
) -> list[RankedHypothesis]:
    """The hypotheses at these positions; columns become lists, as single numbers are slow."""
    components = ranked.components
    total, posterior = ranked.ranking.total.tolist(), ranked.ranking.posterior.tolist()
    columns = [column.tolist() for column in components.lm.values()]
    lm = [dict(zip(components.lm, values, strict=True)) for values in zip(*columns, strict=True)]
    words, tokens = components.words.tolist(), components.tokens.tolist()
    chars, oov = components.chars.tolist(), ranked.scores[models[0].name].oov
    hypotheses: list[RankedHypothesis] = []
    for rank, position in enumerate(best_first, start=1):
        hypothesis = utterance.hypotheses[position]
        hypotheses.append(
            {
                "rank": rank,
                "input_rank": position + 1,
                "text": hypothesis.text,
                "score": total[position],
                "posterior": posterior[position],
                "components": {
                    "am": hypothesis.am_score,
                    "graph": hypothesis.graph_score,
                    "lm": lm[position],
                    "extra": hypothesis.extra,
                },
                "num_words": words[position],
                "num_tokens": tokens[position],
                "num_chars": chars[position],
                "oov": list(oov[position]) if position in oov else [],
            }
        )
    return hypotheses


def require_finite(scores: ListScores) -> None:
    """Pass scores that JSON has numbers for.

    Raises:
        ValueError: a log-probability is not finite: the model is broken, not the request.
    """
    if not np.isfinite(scores.log_prob[scores.is_complete]).all():
        raise ValueError("a model scored a text with NaN or infinity; this is a bug")


def scored_texts(request: ScoreRequest, scores: ListScores, model: LoadedModel) -> list[ScoredText]:
    """The `results` of a reply, in the order of the request's texts."""
    require_finite(scores)
    return [
        scored_text(text, score, model, request)
        for text, score in zip(request.texts, scores.scores, strict=True)
    ]


def scored_text(
    text: str, score: TextScore, model: LoadedModel, request: ScoreRequest
) -> ScoredText:
    """Probability of one text, with the details that were asked for."""
    ends = int(request.final)
    scored: ScoredText = {
        "text": text,
        "log_prob": score.log_prob,
        "num_tokens": score.num_tokens,
        "num_words": len(score.words),
        "perplexity_per_token": perplexity(score.log_prob, score.num_tokens + ends),
        "perplexity_per_word": perplexity(score.log_prob, len(score.words) + ends),
        "oov": list(score.oov),
    }
    if request.return_tokens:
        scored["tokens"] = token_scores(score, model)
    if request.return_words:
        scored["words"] = word_scores(score)
    return scored


def token_scores(score: TextScore, model: LoadedModel) -> list[TokenScore]:
    """Every scored token of one text."""
    return [
        {"piece": model.tokenizer.piece(token), "id": token, "log_prob": log_prob}
        for token, log_prob in zip(score.token_ids, score.token_log_probs.tolist(), strict=True)
    ]


def word_scores(score: TextScore) -> list[WordScore]:
    """Every word of one text as the LM reads it."""
    return [
        {"word": word, "log_prob": log_prob}
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
    return {
        "am_scale": weights.am_scale,
        "graph_scale": weights.graph_scale,
        "lm_scales": dict(weights.lm_scales),
        "word_bonus": weights.word_bonus,
        "token_bonus": weights.token_bonus,
        "char_bonus": weights.char_bonus,
        "bias": weights.bias,
        "extra": dict(weights.extra),
        "length_norm": weights.length_norm,
        "gnmt_alpha": weights.gnmt_alpha,
        "length_offset": weights.length_offset,
        "mode": weights.mode,
    }


def total_usage(usages: Iterable[Usage]) -> UsageCounts:
    """Work of a whole request."""
    counts: UsageCounts = {
        "hypotheses": 0,
        "tokens": 0,
        "tree_nodes": 0,
        "cache_hits": 0,
        "sharing": 1.0,
        "skipped_nodes": 0,
        "skipped_hypotheses": 0,
    }
    for usage in usages:
        counts["hypotheses"] += usage.hypotheses
        counts["tokens"] += usage.tokens
        counts["tree_nodes"] += usage.tree_nodes
        counts["cache_hits"] += usage.cache_hits
        counts["skipped_nodes"] += usage.skipped_nodes
        counts["skipped_hypotheses"] += usage.skipped_hypotheses
    if counts["tree_nodes"]:
        counts["sharing"] = counts["tokens"] / counts["tree_nodes"]
    return counts
