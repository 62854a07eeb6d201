"""Rescored lists as a tuning set, and tuned values back as `Weights`. Runs no model.

A weight is named as its term in the formula: "am", "graph", "lm[NAME]", "extra[NAME]", "words",
"tokens", "chars".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.combine import Weights, combine
from quantized_lm.components import Components, escape
from quantized_lm.errors import DataError, naming
from quantized_lm.scored import ScoredHypothesis, ScoredUtterance, components_of
from quantized_lm.tuning import TuningResult, TuningSet, count_errors
from quantized_lm.wer import error_counts

SPEAKERS = ("all", "even", "odd")
SPEAKER_PATTERN = "^[^-]+"  # of an utterance id as LibriSpeech has them
_NAMED = re.compile(r"(lm|extra)\[(.*)\]", re.DOTALL)
_FIELDS: Mapping[str, str] = {
    "am": "am_scale",
    "graph": "graph_scale",
    "words": "word_bonus",
    "tokens": "token_bonus",
    "chars": "char_bonus",
}


def tuning_set(utterances: Sequence[ScoredUtterance]) -> TuningSet:
    """All lists that could be ranked as one set; it has the scores that every hypothesis has.

    Raises:
        DataError: an utterance has no reference, or there is none; or some hypotheses have an am,
            graph or LM score and others lack it. (An extra score that some lack is left out.)
        NonFiniteError: a score is infinite.
    """
    utterances = [utterance for utterance in utterances if utterance.is_ranked]
    _require_all_or_none(utterances)
    columns = [_columns(components_of(utterance.hypotheses)) for utterance in utterances]
    names = [name for name in (columns[0] if columns else ()) if all(name in c for c in columns)]
    errors = [
        error_counts(reference(utterance), [h.text for h in utterance.hypotheses])
        for utterance in utterances
    ]
    sizes = np.array([counts.size for counts in errors], np.int64)
    empty = np.empty((0, len(names)))
    return TuningSet(
        names=tuple(names),
        features=np.concatenate([empty, *(_stack(c, names) for c in columns)]),
        errors=np.concatenate([np.empty(0, np.int64), *errors]),
        starts=np.cumsum(sizes) - sizes,
        words=sum(len(reference(utterance).split()) for utterance in utterances),
    )


def values_of(weights: Weights, names: Sequence[str]) -> dict[str, float]:
    """The value of each named weight; 0 for an LM or extra that the weights do not have."""
    values = {}
    for name in names:
        if match := _NAMED.fullmatch(name):
            scales = weights.lm_scales if match[1] == "lm" else weights.extra
            values[name] = scales.get(match[2], 0.0)
        else:
            values[name] = getattr(weights, _FIELDS[name])
    return values


def weights_of(values: Mapping[str, float]) -> Weights:
    """Weights that count the named terms and nothing else."""
    scales: dict[str, dict[str, float]] = {"lm": {}, "extra": {}}
    fields: dict[str, Any] = {"am_scale": 0.0}
    for name, value in values.items():
        if match := _NAMED.fullmatch(name):
            scales[match[1]][match[2]] = value
        else:
            fields[_FIELDS[name]] = value
    return Weights(
        lm_scales=scales["lm"],
        extra={name: scale for name, scale in scales["extra"].items() if scale != 0.0},
        **fields,
    )


def start_values(names: Sequence[str], given: Weights | None = None) -> dict[str, float]:
    """Values to start a search from; the first score there is keeps its factor, the scale of all.

    Args:
        names: of a tuning set.
        given: weights to start from instead of the usual ones.

    Raises:
        DataError: a total would not be linear in the weights given, they count a score that the
            set does not have, or there is no score.
    """
    if given is not None:
        if given.length_norm != "none" or given.mode != "log-linear":
            raise DataError(
                f"start has length_norm {given.length_norm!r} and mode {given.mode!r}; the search "
                "needs a total that is linear in the weights: 'none' and 'log-linear'"
            )
        for source in given.sources:
            if source.name and source.name not in names:
                raise DataError(
                    f"start has weight {source.weight:g} of {source.name}, which not all "
                    f"hypotheses have; need weight 0, or scores among {', '.join(names)}"
                )
        return values_of(given, names)
    values = values_of(Weights(graph_scale=1.0), names)
    values.update({name: 0.5 for name in names if name.startswith("lm[")})
    if "am" not in names:
        values[_scale_setter(names)] = 1.0
    return values


def default_free(names: Sequence[str]) -> list[str]:
    """The weights that are tuned where nothing else is wished: every LM, words, graph.

    Raises:
        DataError: there is no score.
    """
    kept = _scale_setter(names)
    return [
        name
        for name in names
        if name != kept and (name in ("graph", "words") or name.startswith("lm["))
    ]


def rounded_weights(data: TuningSet, result: TuningResult) -> Weights:
    """The weights that were found, four digits of each value, unless that costs an error."""
    values = {name: float(f"{nine_places(value):.4g}") for name, value in result.weights.items()}
    costs = count_errors(data, np.array([values[name] for name in data.names]))
    return weights_of(values if costs <= result.errors else dict(result.weights))


def nine_places(weight: float) -> float:
    """A weight to nine places: the middle of what is flat on both sides of 0 is 0, not 6e-16."""
    return round(weight, 9) + 0.0  # and not -0


def best_hypothesis(utterance: ScoredUtterance, weights: Weights) -> int:
    """Position in the decoder's order of the hypothesis that these weights put first.

    A list that could not be ranked keeps that order.

    Raises:
        DataError: a score that they need is missing; the message names the utterance.
    """
    if not utterance.is_ranked:
        return 0
    with naming(utterance.id):
        return int(combine(components_of(utterance.hypotheses), weights).order[0])


def reference(utterance: ScoredUtterance) -> str:
    """What was said.

    Raises:
        DataError: it is not known.
    """
    if utterance.ref is None:
        raise DataError(f"utterance {utterance.id!r} has no 'ref'; need references to count errors")
    return utterance.ref


def select_speakers(
    utterances: Sequence[ScoredUtterance], which: str, pattern: str
) -> list[ScoredUtterance]:
    """The utterances of every second speaker, so that a set makes a dev and a test half.

    Args:
        utterances: of all speakers.
        which: "all", or "even" or "odd": the speakers at these positions, counted from 0, of the
            sorted distinct names.
        pattern: regular expression; what it matches in the utterance id is the speaker: its first
            group, or all of the match where it has none.

    Raises:
        DataError: unknown choice, no regular expression, an id that it does not match, or the same
            speaker in all of them and the half without.
    """
    if which not in SPEAKERS:
        raise DataError(f"speakers are {which!r}; need one of {', '.join(SPEAKERS)}")
    if which == "all":
        return list(utterances)
    speakers = [_speaker(utterance.id, pattern) for utterance in utterances]
    chosen = set(sorted(set(speakers))[which == "odd" :: 2])
    if speakers and not chosen:
        raise DataError(
            f"no speaker is {which}: {pattern!r} finds {speakers[0]!r} in all utterance ids; need "
            "two speakers or more; '.*' takes each utterance for one"
        )
    return [
        utterance
        for utterance, speaker in zip(utterances, speakers, strict=True)
        if speaker in chosen
    ]


def speaker_groups(utterances: Sequence[ScoredUtterance], pattern: str) -> list[str]:
    """The speaker of each utterance that could be ranked; its whole id where none is found in it.

    Raises:
        DataError: the pattern is no regular expression.
    """
    return [_search(pattern, u.id) or u.id for u in utterances if u.is_ranked]


def _require_all_or_none(utterances: Sequence[ScoredUtterance]) -> None:
    """Refuse a set that would lose a score because one hypothesis lacks it."""
    known = {field for one in utterances for own in one.hypotheses for field in _fields_of(own)}
    for utterance in utterances:
        for position, hypothesis in enumerate(utterance.hypotheses):
            missing = sorted(known - _fields_of(hypothesis))
            if missing:
                place = f"/hypotheses/{utterance.order.index(position)}/components/{missing[0]}"
                raise DataError(
                    f"utterance {utterance.id!r}: {place}: is missing, and other hypotheses have "
                    "it; need it of all or of none"
                )


def _fields_of(hypothesis: ScoredHypothesis) -> set[str]:
    """The scores of the decoder and of LMs that are there, as they lie in `components`."""
    own = {"am": hypothesis.am, "graph": hypothesis.graph}
    given = {name for name, score in own.items() if score is not None}
    return given | {f"lm/{escape(name)}" for name in hypothesis.lm}


def _scale_setter(names: Sequence[str]) -> str:
    """The term whose factor stays: scaling all weights alike changes no ranking."""
    for name in names:
        if name in ("am", "graph") or name.startswith("lm["):
            return name
    raise DataError("the lists have no am, graph or LM score that all hypotheses share")


def _speaker(utterance_id: str, pattern: str) -> str:
    speaker = _search(pattern, utterance_id)
    if speaker is None:
        raise DataError(f"{pattern!r} finds no speaker in utterance id {utterance_id!r}")
    return speaker


def _search(pattern: str, utterance_id: str) -> str | None:
    try:
        match = re.search(pattern, utterance_id)
    except re.error as error:
        raise DataError(f"{pattern!r} is no regular expression ({error})") from None
    return match[1 if match.re.groups else 0] if match else None


def _columns(components: Components) -> dict[str, NDArray[np.float64]]:
    """Name -> (H,) column, of the scores that every hypothesis of the list has."""
    given = {
        "am": components.am,
        "graph": components.graph,
        **{f"lm[{name}]": values for name, values in components.lm.items()},
        **{f"extra[{name}]": values for name, values in components.extra.items()},
        "words": components.words.astype(np.float64),
        "tokens": components.tokens.astype(np.float64),
        "chars": components.chars.astype(np.float64),
    }
    return {
        name: values
        for name, values in given.items()
        if values is not None and not np.isnan(values).any()
    }


def _stack(columns: Mapping[str, NDArray[np.float64]], names: list[str]) -> NDArray[np.float64]:
    return np.stack([columns[name] for name in names], axis=1)
