"""Totals, ties, missing scores and the promise that reported terms add up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantized_lm.combine import (
    Weights,
    combine,
    divisor,
    formula,
    require_scores,
    terms,
    totals,
)
from quantized_lm.components import Components, score_column
from quantized_lm.errors import InputError, MissingScoreError, NonFiniteError, ShapeError


def components(**changes: object) -> Components:
    values: dict[str, object] = {
        "am": np.array([-1.0, -2.0]),
        "graph": np.array([-4.0, -3.0]),
        "lm": {"en": np.array([-9.0, -3.0])},
        "extra": {"ctc": np.array([-0.5, -0.25])},
        "words": np.array([3, 2]),
        "tokens": np.array([7, 4]),
        "chars": np.array([11, 9]),
    }
    return Components(**{**values, **changes})  # type: ignore[arg-type]


def test_lm_scale_can_change_the_winner() -> None:
    assert combine(components(), Weights()).order.tolist() == [0, 1]
    ranking = combine(components(), Weights(lm_scales={"en": 0.5}))
    assert ranking.order.tolist() == [1, 0]
    assert ranking.total.tolist() == [-5.5, -3.5]


def test_every_term_of_the_formula_counts() -> None:
    weights = Weights(
        am_scale=0.5,
        graph_scale=2.0,
        lm_scales={"en": 0.25},
        word_bonus=0.5,
        token_bonus=-0.125,
        char_bonus=0.0625,
        extra={"ctc": 4.0},
        bias=10.0,
    )
    first = 0.5 * -1 + 2 * -4 + 0.25 * -9 + 4 * -0.5 + 0.5 * 3 - 0.125 * 7 + 0.0625 * 11 + 10
    assert combine(components(), weights).total[0] == first
    assert formula(weights) == (
        "0.5*am + 2*graph + 0.25*lm[en] + 4*extra[ctc] + 0.5*words - 0.125*tokens "
        "+ 0.0625*chars + 10"
    )


@pytest.mark.parametrize("length_norm", ["none", "tokens", "words", "gnmt"])
@pytest.mark.parametrize("mode", ["log-linear", "linear"])
def test_reported_terms_add_up_to_the_very_total(length_norm: str, mode: str) -> None:
    generator = np.random.default_rng(3)
    columns = generator.normal(-40.0, 13.0, (5, 50))
    some = components(
        am=columns[0],
        graph=columns[1],
        lm={"en": columns[2], "de": columns[3]},
        extra={"ctc": columns[4]},
        words=generator.integers(0, 30, 50),
        tokens=generator.integers(0, 60, 50),
        chars=generator.integers(0, 200, 50),
    )
    weights = Weights(
        am_scale=0.7,
        graph_scale=1.3,
        lm_scales={"en": 0.31, "de": 0.17},
        word_bonus=0.1,
        token_bonus=-0.3,
        char_bonus=0.01,
        extra={"ctc": 0.9},
        bias=0.123,
        length_norm=length_norm,
        gnmt_alpha=0.6,
        length_offset=1,
        mode=mode,
    )
    total = combine(some, weights).total
    for position in range(50):
        added = 0.0
        for term in terms(some, weights, position):
            added += term.weight * term.value
        assert added / divisor(some, weights)[position] == total[position]


def test_formula_numbers_read_back_exactly() -> None:
    text = formula(Weights(am_scale=1 / 3, lm_scales={"en": 0.1 + 0.2}))
    assert [float(part.split("*")[0]) for part in text.split(" + ")] == [1 / 3, 0.1 + 0.2]
    assert formula(Weights(am_scale=-1.0)) == "-1*am"
    assert formula(Weights(am_scale=0.0)) == "0"


def test_formula_names_what_the_sum_is_divided_by() -> None:
    assert formula(Weights(length_norm="tokens", length_offset=2)) == "(1*am) / (tokens + 2)"
    assert formula(Weights(length_norm="words")) == "(1*am) / words"
    gnmt = Weights(length_norm="gnmt", gnmt_alpha=0.6)
    assert formula(gnmt) == "(1*am) / ((5 + tokens)/6)^0.6"
    assert divisor(components(), gnmt)[0] == ((5 + 7) / 6) ** 0.6


def test_length_norm_divides_and_never_by_zero() -> None:
    silence = components(tokens=np.array([0, 4]))
    total = combine(silence, Weights(length_norm="tokens")).total
    assert total.tolist() == [-1.0, -0.5]


def test_scale_0_removes_a_term_even_where_it_is_missing_or_minus_infinity() -> None:
    some = components(am=None, graph=np.array([-math.inf, np.nan]), extra={})
    ranking = combine(some, Weights(am_scale=0.0, lm_scales={"en": 1.0}, extra={"ctc": 0.0}))
    assert ranking.total.tolist() == [-9.0, -3.0]


def test_totals_refuse_what_combine_refuses() -> None:
    weights = Weights(graph_scale=0.5, lm_scales={"en": 1.0})
    with pytest.raises(MissingScoreError) as caught:
        totals(components(lm={"en": np.zeros(2)}, graph=None), weights)
    assert caught.value.pointer == "/hypotheses/0/graph_score"


@pytest.mark.parametrize("length_norm", ["none", "tokens", "words", "gnmt"])
def test_no_total_falls_where_the_score_of_an_lm_rises(length_norm: str) -> None:
    generator = np.random.default_rng(5)
    weights = Weights(am_scale=0.3, lm_scales={"en": 0.7}, word_bonus=-1.1, length_norm=length_norm)
    low = generator.normal(-40.0, 13.0, 1000)
    counts = generator.integers(0, 30, 1000)
    some = components(am=low, lm={"en": low}, words=counts, tokens=counts, chars=counts)
    high = components(am=low, lm={"en": np.nextafter(low, 0.0)}, words=counts, tokens=counts)
    assert (totals(high, weights) >= totals(some, weights)).all()
    assert totals(some, weights).tolist() == combine(some, weights).total.tolist()


def test_ties_keep_the_decoders_order() -> None:
    same = np.zeros(40)
    many = components(am=same, words=same.astype(int), tokens=same, chars=same)
    assert combine(many, Weights()).order.tolist() == list(range(40))


def test_minus_infinity_ranks_last_and_a_list_of_nothing_else_keeps_its_order() -> None:
    ranking = combine(components(am=np.array([-math.inf, -2.0])), Weights())
    assert ranking.order.tolist() == [1, 0]
    assert ranking.posterior.tolist() == [0.0, 1.0]
    hopeless = combine(components(am=np.array([-math.inf, -math.inf])), Weights())
    assert hopeless.order.tolist() == [0, 1]
    assert hopeless.posterior.tolist() == [0.5, 0.5]


def test_posterior_is_a_softmax_at_the_scale_asked_for() -> None:
    posterior = combine(components(), Weights(), posterior_scale=2.0).posterior
    assert posterior[0] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert posterior.sum() == pytest.approx(1.0)
    assert combine(components(), Weights(), posterior_scale=0.0).posterior.tolist() == [0.5, 0.5]


def test_an_empty_list_has_an_empty_ranking() -> None:
    none = np.empty(0)
    empty = Components(None, None, {}, {}, none.astype(int), none.astype(int), none.astype(int))
    ranking = combine(empty, Weights(am_scale=0.0))
    assert (ranking.total.size, ranking.order.size, ranking.posterior.size) == (0, 0, 0)


def test_a_weight_that_needs_a_missing_score_names_the_hypothesis() -> None:
    am = score_column([-1.0, None], "am_score")
    with pytest.raises(MissingScoreError, match="hypothesis 1 has no am_score") as caught:
        combine(components(am=am), Weights())
    assert caught.value.pointer == "/hypotheses/1/am_score"
    with pytest.raises(MissingScoreError) as caught:
        combine(components(graph=None), Weights(graph_scale=0.5))
    assert caught.value.pointer == "/hypotheses/0/graph_score"
    with pytest.raises(MissingScoreError) as caught:
        combine(components(), Weights(extra={"a/b": 1.0}))
    assert caught.value.pointer == "/hypotheses/0/extra/a~1b"
    with pytest.raises(MissingScoreError, match="have en") as caught:
        combine(components(), Weights(lm_scales={"de": 1.0}))
    assert caught.value.pointer == "/hypotheses/0/components/lm/de"


def test_scores_that_are_no_numbers_are_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(NonFiniteError) as caught:
            score_column([0.0, 0.0, value], "am_score")
        assert caught.value.pointer == "/hypotheses/2/am_score"
    with pytest.raises(NonFiniteError, match="LM 'en' is NaN"):
        combine(components(lm={"en": np.array([np.nan, 0.0])}), Weights(lm_scales={"en": 1.0}))
    with pytest.raises(NonFiniteError, match="total of hypothesis 1"):
        combine(components(am=np.array([0.0, math.inf])), Weights())
    with pytest.raises(NonFiniteError, match="posterior_scale"):
        combine(components(), Weights(), posterior_scale=-1.0)
    assert score_column([None, None], "am_score") is None


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"am is \(3,\)"):
        combine(components(am=np.zeros(3)), Weights())


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"am_scale": math.nan}, "/am_scale"),
        ({"lm_scales": {"a/b": math.inf}}, "/lm_scales/a~1b"),
        ({"length_norm": "syllables"}, "/length_norm"),
        ({"mode": "cubic"}, "/mode"),
        ({"length_offset": -1}, "/length_offset"),
        ({"mode": "linear", "graph_scale": 1.0, "lm_scales": {"en": 1.5}}, "/lm_scales/en"),
        ({"mode": "linear", "graph_scale": 1.0, "lm_scales": {"a": 0.6, "b": 0.6}}, "/lm_scales"),
        ({"mode": "linear", "lm_scales": {"en": 0.5}}, "/graph_scale"),
    ],
)
def test_unusable_weights_are_refused_where_they_are(
    fields: dict[str, object], pointer: str
) -> None:
    with pytest.raises(InputError) as caught:
        Weights(**fields)  # type: ignore[arg-type]
    assert caught.value.pointer == pointer


def test_linear_mode_mixes_probabilities_not_logarithms() -> None:
    weights = Weights(graph_scale=8.0, lm_scales={"en": 0.25}, mode="linear")
    mixed = math.log(0.25 * math.exp(-9.0) + 0.75 * math.exp(-4.0))
    assert combine(components(), weights).total[0] == pytest.approx(-1.0 + 8.0 * mixed, rel=1e-14)
    assert formula(weights) == "1*am + 8*log(0.25*exp(lm[en]) + 0.75*exp(graph))"


def test_linear_mode_needs_only_what_has_a_share() -> None:
    all_lm = Weights(graph_scale=1.0, lm_scales={"en": 1.0, "de": 0.0}, mode="linear")
    assert combine(components(graph=None), all_lm).total.tolist() == [-10.0, -5.0]
    with pytest.raises(MissingScoreError):
        combine(
            components(graph=None), Weights(graph_scale=1.0, lm_scales={"en": 0.5}, mode="linear")
        )


@pytest.mark.parametrize(
    "changes",
    [{"am": None}, {"am": np.array([-1.0, np.nan])}, {"lm": {}}, {"words": np.array([3])}],
)
def test_scores_are_missed_before_anything_is_summed(changes: dict[str, object]) -> None:
    weights = Weights(lm_scales={"en": 0.5})
    require_scores(components(), weights)
    incomplete = components(**changes)
    with pytest.raises((MissingScoreError, ShapeError)) as early:
        require_scores(incomplete, weights)
    with pytest.raises((MissingScoreError, ShapeError)) as late:
        totals(incomplete, weights)
    assert str(early.value) == str(late.value)
