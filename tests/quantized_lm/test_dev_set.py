"""Stored scores as a tuning set, names of weights, and the halves of the speakers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantized_lm.combine import Weights
from quantized_lm.dev_set import (
    nine_places,
    rounded_weights,
    select_speakers,
    start_values,
    tuning_set,
    values_of,
    weights_of,
)
from quantized_lm.errors import DataError
from quantized_lm.scored import ScoredHypothesis, ScoredUtterance
from quantized_lm.tuning import TuningResult


def hypothesis(text: str, *, am: float | None = -1.0, ctc: float | None = -2.0) -> ScoredHypothesis:
    extra = {} if ctc is None else {"ctc": ctc}
    return ScoredHypothesis(text, am, None, {"en": -3.0}, extra, 2, 3, len(text))


def utterance(name: str, *texts: str, ref: str | None = "a b") -> ScoredUtterance:
    own = tuple(hypothesis(text) for text in texts)
    return ScoredUtterance(name, own, tuple(range(len(own))), ref)


def test_a_set_has_the_scores_that_every_hypothesis_has() -> None:
    data = tuning_set([utterance("1-1", "a b", "a"), utterance("2-1", "x y")])
    assert data.names == ("am", "lm[en]", "extra[ctc]", "words", "tokens", "chars")
    assert data.features.tolist()[1] == [-1.0, -3.0, -2.0, 2.0, 3.0, 1.0]
    assert data.errors.tolist() == [0, 1, 2]
    assert data.starts.tolist() == [0, 2]
    assert data.words == 4
    partly = ScoredUtterance("3-1", (hypothesis("a", ctc=None),), (0,), "a")
    assert tuning_set([utterance("1-1", "a"), partly]).names == (
        "am",
        "lm[en]",
        "words",
        "tokens",
        "chars",
    )


@pytest.mark.parametrize(
    ("lacking", "field"),
    [
        (hypothesis("b", am=None), "am"),
        (replace(hypothesis("b"), lm={}), "lm/en"),
        (replace(hypothesis("b"), lm={"a/b": -1.0, "en": -1.0}), None),
    ],
)
def test_a_score_that_one_hypothesis_lacks_is_named(
    lacking: ScoredHypothesis, field: str | None
) -> None:
    # In the file the last of the decoder's order comes first.
    partly = ScoredUtterance("3-1", (hypothesis("a"), lacking), (1, 0), "a")
    place = "'1-1': /hypotheses/0/components/lm/a~1b" if field is None else f"'3-1': .*/0/.*{field}"
    with pytest.raises(DataError, match=f"utterance {place}: is missing.*need it of all or of"):
        tuning_set([utterance("1-1", "a"), partly])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Weights(graph_scale=2.0), "weight 2 of graph"),
        (Weights(lm_scales={"en": 1.0, "de": 0.5}), r"weight 0.5 of lm\[de\]"),
        (Weights(extra={"x": -1.0}), r"weight -1 of extra\[x\]"),
    ],
)
def test_a_start_that_counts_what_is_not_there_is_refused(given: Weights, message: str) -> None:
    names = tuning_set([utterance("1-1", "a")]).names
    with pytest.raises(DataError, match=f"start has {message}, which not all hypotheses have"):
        start_values(names, given)


def test_a_start_may_name_what_is_not_there_with_weight_0() -> None:
    given = Weights(lm_scales={"en": 1.0, "de": 0.0}, bias=1.0)
    assert start_values(("am", "lm[en]"), given) == {"am": 1.0, "lm[en]": 1.0}


def test_sets_without_references_are_refused() -> None:
    with pytest.raises(DataError, match="utterance '1-1' has no 'ref'"):
        tuning_set([utterance("1-1", "a", ref=None)])
    with pytest.raises(DataError, match="0 lists"):
        tuning_set([])


def test_values_and_weights_are_two_views_of_one_thing() -> None:
    weights = Weights(graph_scale=2.0, lm_scales={"en": 0.5}, word_bonus=-1.0, extra={"ctc": 0.25})
    names = ("am", "graph", "lm[en]", "extra[ctc]", "words", "tokens", "chars")
    values = values_of(weights, names)
    assert list(values.values()) == [1.0, 2.0, 0.5, 0.25, -1.0, 0.0, 0.0]
    assert weights_of(values) == weights
    assert values_of(weights, ["lm[de]", "extra[x]"]) == {"lm[de]": 0.0, "extra[x]": 0.0}
    assert weights_of({"lm[en]": 1.0}).am_scale == 0.0


def test_what_rounding_made_of_zero_is_zero() -> None:
    data = tuning_set([utterance("1", "a b", "a")])
    found = values_of(Weights(lm_scales={"en": 0.123456}, word_bonus=-5.8e-16), data.names)
    weights = rounded_weights(data, TuningResult(found, 0, (), 1))
    assert (weights.word_bonus, weights.lm_scales) == (0.0, {"en": 0.1235})
    assert str(nine_places(-5.8e-16)) == "0.0"


def test_even_and_odd_speakers_are_halves_by_sorted_name() -> None:
    names = ["30-1", "10-1", "20-1", "10-2", "40-7"]
    everyone = [utterance(name, "a") for name in names]

    def chosen(which: str, pattern: str = "^[^-]+") -> list[str]:
        return [one.id for one in select_speakers(everyone, which, pattern)]

    assert chosen("all") == names
    assert chosen("even") == ["30-1", "10-1", "10-2"]
    assert chosen("odd") == ["20-1", "40-7"]
    assert chosen("odd", "-(.)") == ["10-2"]  # the group: speakers 1, 2 and 7


def test_unusable_speaker_choices_are_refused() -> None:
    some = [utterance("u", "a")]
    with pytest.raises(DataError, match="need one of all, even, odd"):
        select_speakers(some, "half", ".")
    with pytest.raises(DataError, match="no regular expression"):
        select_speakers(some, "even", "(")
    with pytest.raises(DataError, match="no speaker is odd: '.' finds 'u' in all utterance ids"):
        select_speakers(some, "odd", ".")
    with pytest.raises(DataError, match="finds no speaker"):
        select_speakers(some, "even", "[0-9]+")
    with pytest.raises(DataError, match="finds no speaker in utterance id 'u'"):
        select_speakers([*some, utterance("v", "a")], "even", "(v)|u")  # a group that took no part
