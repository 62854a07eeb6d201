"""One n-best list before and after the engine: checked and tokenized, then ranked.

Runs on worker threads. Knows neither HTTP nor the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantized_lm import scoring
from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Components, Ranking, Weights, combine, escape, score_column
from quantized_lm.errors import InputError, OovError
from service.errors import OverBudgetError, relocated
from service.schemas import Utterance

Trees = list[scoring.PreparedList]
Args = ParamSpec("Args")
Done = TypeVar("Done")


@dataclass(frozen=True)
class ListRules:
    """What holds for every list of one request.

    Attributes:
        models: the LMs, in the order the request names them.
        weights: what each term counts for.
        posterior_scale: factor of the totals under the softmax.
        forbids_oov: whether a word outside the vocabulary is an error.
        budget_tokens: most tree nodes of one list.
    """

    models: Sequence[LoadedModel]
    weights: Weights
    posterior_scale: float
    forbids_oov: bool
    budget_tokens: int


@dataclass(frozen=True)
class RankedList:
    """One list with the scores that ranked it."""

    scores: Mapping[str, scoring.ListScores]
    components: Components
    ranking: Ranking


def prepare_lists(utterances: Sequence[Utterance], rules: ListRules) -> list[Trees | InputError]:
    """Prepare every list; one that cannot be ranked leaves its error, pointing into the request."""
    return [
        _or_error(position, prepare_list, utterance, rules)
        for position, utterance in enumerate(utterances)
    ]


def rank_lists(
    utterances: Sequence[Utterance],
    prepared: Sequence[Trees | InputError],
    results: Iterable[scoring.ListScores],
    rules: ListRules,
) -> list[RankedList | InputError]:
    """Rank every list that was prepared; the others keep their error.

    Args:
        utterances: the lists as they came.
        prepared: what `prepare_lists` made of them.
        results: of every tree, list by list.
        rules: those of the request.
    """
    in_order = iter(results)
    ranked: list[RankedList | InputError] = []
    for position, (utterance, trees) in enumerate(zip(utterances, prepared, strict=True)):
        if isinstance(trees, InputError):
            ranked.append(trees)
            continue
        scores = {model.name: next(in_order) for model in rules.models}
        ranked.append(_or_error(position, rank_list, utterance, scores, rules))
    return ranked


def prepare_list(utterance: Utterance, rules: ListRules) -> Trees:
    """Check one list and turn it into one token tree per LM.

    Raises:
        InputError: it cannot be ranked; the pointer is relative to the utterance.
    """
    count = len(utterance.hypotheses)
    nothing = {model.name: np.zeros(count) for model in rules.models}
    no_lengths = np.zeros(count, np.int64)
    # Ranking by the first pass alone refuses a missing score before any work is spent on it.
    combine(_components(utterance, nothing, no_lengths, no_lengths), rules.weights)
    texts = tuple(hypothesis.text for hypothesis in utterance.hypotheses)
    if rules.forbids_oov:
        for model in rules.models:
            _refuse_oov(texts, model)
    request = scoring.ScoreRequest(texts, tuple(utterance.context.text), utterance.final)
    return [prepare_texts(request, model, rules.budget_tokens) for model in rules.models]


def prepare_texts(
    request: scoring.ScoreRequest, model: LoadedModel, budget_tokens: int
) -> scoring.PreparedList:
    """One token tree that fits one forward pass.

    Raises:
        TooLongError: a text has more tokens than the model takes.
        OverBudgetError: the tree has more nodes than the budget.
    """
    prepared = scoring.prepare(request, model)
    if prepared.cost_tokens > budget_tokens:
        raise OverBudgetError(
            f"the texts need {prepared.cost_tokens} tree nodes; need {budget_tokens} or fewer, "
            "send fewer of them",
            pointer="/hypotheses",
        )
    return prepared


def rank_list(
    utterance: Utterance, scores: Mapping[str, scoring.ListScores], rules: ListRules
) -> RankedList:
    """Combine the LMs' scores with the decoder's.

    Args:
        utterance: the list as it came.
        scores: LM name -> its scores of the list.
        rules: those of the request.

    Raises:
        InputError: a total is not a number; the pointer is relative to the utterance.
    """
    lm = {
        name: np.array([score.log_prob for score in of_list.scores], np.float64)
        for name, of_list in scores.items()
    }
    first = scores[rules.models[0].name].scores
    words = np.array([len(score.words) for score in first], np.int64)
    tokens = np.array([score.num_tokens for score in first], np.int64)
    components = _components(utterance, lm, words, tokens)
    ranking = combine(components, rules.weights, posterior_scale=rules.posterior_scale)
    return RankedList(scores, components, ranking)


def _components(
    utterance: Utterance,
    lm: Mapping[str, NDArray[np.float64]],
    words: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> Components:
    hypotheses = utterance.hypotheses
    names = dict.fromkeys(name for hypothesis in hypotheses for name in hypothesis.extra)
    return Components(
        am=score_column([hypothesis.am_score for hypothesis in hypotheses], "am_score"),
        graph=score_column([hypothesis.graph_score for hypothesis in hypotheses], "graph_score"),
        lm=lm,
        extra={
            name: score_column([h.extra.get(name) for h in hypotheses], f"extra/{escape(name)}")
            for name in names
        },
        words=words,
        tokens=tokens,
        chars=np.array([len(hypothesis.text) for hypothesis in hypotheses], np.int64),
    )


def _or_error(
    position: int, step: Callable[Args, Done], *args: Args.args, **kwargs: Args.kwargs
) -> Done | InputError:
    try:
        return step(*args, **kwargs)
    except InputError as error:
        return relocated(error, f"/utterances/{position}")


def _refuse_oov(texts: Sequence[str], model: LoadedModel) -> None:
    for position, text in enumerate(texts):
        if oov := model.tokenizer.encode(text).oov:
            raise OovError(
                f"{oov[0]!r} is outside the vocabulary of {model.name}; "
                'need words it can spell, or options.oov "score-unk"',
                pointer=f"/hypotheses/{position}/text",
            )
