"""One n-best list before and after the engine: checked and tokenized, then ranked.

Knows neither HTTP nor the queue, and but for `run_step` not which thread it runs on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantized_lm import scoring
from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Ranking, Weights, combine, require_scores, totals
from quantized_lm.components import Components, escape, score_column
from quantized_lm.errors import InputError, OovError
from quantized_lm.pruning import TotalOf
from quantized_lm.tokenizer import EncodedTexts
from service.errors import OverBudgetError, relocated
from service.schemas import Utterance
from service.workers import Workers

Args = ParamSpec("Args")
Done = TypeVar("Done")
INLINE_CHARS = 24_576


@dataclass(frozen=True)
class ListRules:
    """What holds for every list of one request.

    Attributes:
        models: the LMs, in the order the request names them.
        weights: what each term counts for.
        posterior_scale: factor of the totals under the softmax.
        wants_best_only: whether the best hypothesis is all that the reply needs.
        forbids_oov: whether a word outside the vocabulary is an error.
        budget_tokens: most tree nodes of one list.
    """

    models: Sequence[LoadedModel]
    weights: Weights
    posterior_scale: float
    wants_best_only: bool
    forbids_oov: bool
    budget_tokens: int


@dataclass(frozen=True)
class CheckedList:
    """One list ready for the engine.

    Attributes:
        components: its scores and lengths; those of the LMs are 0 until they are known.
        trees: its texts, for each LM.
    """

    components: Components
    trees: Sequence[scoring.PreparedList]


@dataclass(frozen=True)
class EngineResults:
    """What came of a request's trees, list by list.

    Attributes:
        scores: None where there are none in time.
        missing_because: why.
    """

    scores: Sequence[scoring.ListScores | None]
    missing_because: str


@dataclass(frozen=True)
class RankedList:
    """One list with the scores that ranked it."""

    scores: Mapping[str, scoring.ListScores]
    components: Components
    ranking: Ranking


@dataclass(frozen=True)
class UnrankedList:
    """One list that keeps the decoder's order.

    Attributes:
        checked: the list as it was prepared. reason: why its LM scores are not there.
    """

    checked: CheckedList
    reason: str


async def run_step(
    workers: Workers,
    num_chars: int,
    step: Callable[Args, Done],
    *args: Args.args,
    **kwargs: Args.kwargs,
) -> Done:
    """Run a step of a request here if the texts it is about are short, else on a thread.

    Two lists of 100 sentences take half a millisecond a step. To hand that to a thread costs a
    third as much again, and the thread would hold the interpreter just the same; beyond it the
    event loop had better stay free.
    """
    if num_chars <= INLINE_CHARS:
        return step(*args, **kwargs)
    return await workers.run(step, *args, **kwargs)


def place_of(
    workers: Workers, num_chars: int, *, falls_back: bool = False
) -> AbstractContextManager[None]:
    """The place on the threads of a request with so much text; a short one needs none.

    Args:
        falls_back: whether it is answered also where there is none.

    Raises:
        OverloadedError: as `Workers.place`, where the place is taken.
    """
    return nullcontext() if falls_back or num_chars <= INLINE_CHARS else workers.place(num_chars)


def prepare_lists(
    utterances: Sequence[Utterance], rules: ListRules
) -> list[CheckedList | InputError]:
    """Prepare every list; one that cannot be ranked leaves its error, pointing into the request."""
    return [
        _or_error(position, prepare_list, utterance, rules)
        for position, utterance in enumerate(utterances)
    ]


def rank_lists(
    prepared: Sequence[CheckedList | InputError],
    results: EngineResults,
    rules: ListRules,
) -> list[RankedList | UnrankedList | InputError]:
    """Rank every list that was prepared and scored; the others keep their order, or their error.

    Args:
        prepared: what `prepare_lists` made of the request.
        results: of every tree, list by list.
        rules: those of the request.
    """
    in_order = iter(results.scores)
    ranked: list[RankedList | UnrankedList | InputError] = []
    for position, checked in enumerate(prepared):
        if isinstance(checked, InputError):
            ranked.append(checked)
            continue
        found = {model.name: next(in_order) for model in rules.models}
        scores = {name: of_list for name, of_list in found.items() if of_list is not None}
        if len(scores) < len(found):
            ranked.append(UnrankedList(checked, results.missing_because))
        else:
            ranked.append(_or_error(position, rank_list, checked, scores, rules))
    return ranked


def prepare_list(utterance: Utterance, rules: ListRules) -> CheckedList:
    """Check one list and turn it into one token tree per LM.

    Raises:
        InputError: it cannot be ranked; the pointer is relative to the utterance.
    """
    texts = tuple([hypothesis.text for hypothesis in utterance.hypotheses])
    encoded = [model.tokenizer.encode_all(texts) for model in rules.models]
    components = _components(utterance, rules.models, encoded[0])
    require_scores(components, rules.weights)  # before the engine works for it
    if rules.forbids_oov:
        for model, tokens in zip(rules.models, encoded, strict=True):
            _refuse_oov(texts, tokens, model)
    request = scoring.ScoreRequest(texts, tuple(utterance.context.text), utterance.final)
    trees = [
        prepare_texts(request, tokens, model, rules.budget_tokens)
        for model, tokens in zip(rules.models, encoded, strict=True)
    ]
    if rules.wants_best_only and len(trees) == 1 and _rises_with_lms(rules.weights):
        trees = [dataclasses.replace(trees[0], total_of=_total_of(components, rules))]
    return CheckedList(components, trees)


def prepare_texts(
    request: scoring.ScoreRequest, encoded: EncodedTexts, model: LoadedModel, budget_tokens: int
) -> scoring.PreparedList:
    """One token tree that fits one forward pass.

    Raises:
        TooLongError: a text has more tokens than the model takes.
        OverBudgetError: the tree has more nodes than the budget.
    """
    prepared = scoring.prepare_encoded(request, encoded, model)
    if prepared.cost_tokens > budget_tokens:
        raise OverBudgetError(
            f"the texts need {prepared.cost_tokens} tree nodes; need {budget_tokens} or fewer, "
            "send fewer of them",
            pointer="/hypotheses",
        )
    return prepared


def rank_list(
    checked: CheckedList, scores: Mapping[str, scoring.ListScores], rules: ListRules
) -> RankedList:
    """Combine the LMs' scores with the decoder's.

    Args:
        checked: the list as it was prepared.
        scores: LM name -> its scores of the list.
        rules: those of the request.

    Raises:
        InputError: a total is not a number; the pointer is relative to the utterance.
    """
    lm = {name: of_list.log_prob for name, of_list in scores.items()}
    components = dataclasses.replace(checked.components, lm=lm)
    ranking = combine(components, rules.weights, posterior_scale=rules.posterior_scale)
    return RankedList(scores, components, ranking)


def _components(
    utterance: Utterance, models: Sequence[LoadedModel], encoded: EncodedTexts
) -> Components:
    """What is known of a list as it comes; the LMs' scores are 0."""
    hypotheses = utterance.hypotheses
    names = dict.fromkeys([name for hypothesis in hypotheses for name in hypothesis.extra])
    unknown = np.zeros(len(hypotheses))
    return Components(
        am=score_column([hypothesis.am_score for hypothesis in hypotheses], "am_score"),
        graph=score_column([hypothesis.graph_score for hypothesis in hypotheses], "graph_score"),
        lm={model.name: unknown for model in models},
        extra={
            name: score_column([h.extra.get(name) for h in hypotheses], f"extra/{escape(name)}")
            for name in names
        },
        words=encoded.num_words,
        tokens=encoded.num_tokens,
        chars=np.array([len(hypothesis.text) for hypothesis in hypotheses], np.int64),
    )


def _rises_with_lms(weights: Weights) -> bool:
    """Whether no total can fall, by a single bit, where the score of an LM rises.

    Products and sums round monotonically; the logarithm of mode "linear" need not.
    """
    return weights.mode == "log-linear" and min(weights.lm_scales.values()) >= 0.0


def _total_of(components: Components, rules: ListRules) -> TotalOf:
    (model,) = rules.models

    def total_of(log_prob: NDArray[np.float64]) -> NDArray[np.float64]:
        return totals(dataclasses.replace(components, lm={model.name: log_prob}), rules.weights)

    return total_of


def _or_error(
    position: int, step: Callable[Args, Done], *args: Args.args, **kwargs: Args.kwargs
) -> Done | InputError:
    try:
        return step(*args, **kwargs)
    except InputError as error:
        return relocated(error, f"/utterances/{position}")


def _refuse_oov(texts: Sequence[str], encoded: EncodedTexts, model: LoadedModel) -> None:
    if not encoded.num_oov.any():
        return
    position = int(np.argmax(encoded.num_oov > 0))
    word = model.tokenizer.encode(texts[position]).oov[0]
    raise OovError(
        f"{word!r} is outside the vocabulary of {model.name}; "
        'need words it can spell, or options.oov "score-unk"',
        pointer=f"/hypotheses/{position}/text",
    )
