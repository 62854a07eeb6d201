"""The exact line search against brute force, and what tuning promises."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from quantized_lm.errors import DataError, NonFiniteError
from quantized_lm.nbest import read_utterances
from quantized_lm.tuning import (
    Curve,
    TuningSet,
    best_interval,
    count_errors,
    error_curve,
    tune,
)
from quantized_lm.wer import error_counts


def random_set(seed: int, *, lists: int = 40, repeat: bool = False) -> TuningSet:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 9, lists)
    features = generator.normal(size=(sizes.sum(), 3)) * [3.0, 8.0, 2.0]
    if repeat:  # whole numbers, so that lines coincide and cross in one point
        features = generator.integers(-2, 3, (sizes.sum(), 3)).astype(float)
    return TuningSet(
        names=("am", "lm[en]", "words"),
        features=features,
        errors=generator.integers(0, 6, sizes.sum()),
        starts=np.cumsum(sizes) - sizes,
        words=20 * lists,
    )


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_error_curve_equals_a_dense_grid(*, seed: int, repeat: bool) -> None:
    data = random_set(seed, repeat=repeat)
    generator = np.random.default_rng(100 + seed)
    start = generator.normal(size=3)
    direction = generator.normal(size=3)
    curve = error_curve(data, start, direction)
    assert (np.diff(curve.thresholds) > 0).all()
    grid = np.concatenate([np.linspace(-30, 30, 4001) + 1e-4, [-1e6, 1e6]])
    for t in grid:
        if np.abs(curve.thresholds - t).min(initial=1.0) < 1e-9:
            continue  # at a threshold itself two hypotheses tie
        expected = count_errors(data, start + t * direction)
        assert curve.errors[np.searchsorted(curve.thresholds, t)] == expected


def test_error_count_keeps_the_decoders_order_on_ties() -> None:
    data = TuningSet(("am",), np.zeros((3, 1)), np.array([5, 0, 1]), np.array([0, 2]), 10)
    assert count_errors(data, np.ones(1)) == 6


def test_the_widest_of_equal_intervals_wins() -> None:
    curve = Curve(np.array([-2.0, 1.0, 2.0, 7.0]), np.array([9, 3, 5, 3, 8]))
    found = best_interval(curve, -10.0, 10.0)
    assert (found.low, found.high, found.errors, found.middle) == (2.0, 7.0, 3, 4.5)
    assert best_interval(curve, -10.0, 3.0).low == -2.0  # cut, the second is narrower
    assert best_interval(curve, 1.2, 1.8).errors == 5


def test_a_line_on_which_nothing_changes_has_one_interval() -> None:
    data = TuningSet(("am",), np.array([[1.0], [1.0]]), np.array([1, 0]), np.array([0]), 5)
    curve = error_curve(data, np.ones(1), np.ones(1))
    assert (curve.thresholds.size, curve.errors.tolist()) == (0, [1])
    assert best_interval(curve, -4.0, 4.0).middle == 0.0


def test_tuning_one_weight_finds_the_grids_best() -> None:
    data = random_set(7, lists=150)
    start = {"am": 1.0, "lm[en]": 0.5, "words": 0.0}
    result = tune(data, start, ["lm[en]"])
    grid = [count_errors(data, np.array([1.0, t, 0.0])) for t in np.linspace(-3.7, 3.7, 3001)]
    assert result.errors <= min(grid)
    flat = result.flatness[0]
    assert flat.same[0] < flat.value < flat.same[1]
    assert flat.near[0] <= flat.same[0]
    assert flat.near[1] >= flat.same[1]
    for inside in np.linspace(*flat.same, 9)[1:-1]:
        assert count_errors(data, np.array([1.0, inside, 0.0])) == result.errors


def test_tuning_two_weights_beats_a_grid_and_repeats_itself() -> None:
    data = random_set(11, lists=150)
    start = {"am": 1.0, "lm[en]": 0.5, "words": 0.0}
    result = tune(data, start, ["lm[en]", "words"], restarts=12)
    axis = np.linspace(-4.0, 4.0, 81)
    grid = min(count_errors(data, np.array([1.0, a, b])) for a in axis for b in axis)
    assert result.errors <= grid
    assert result.weights["am"] == 1.0
    assert tune(data, start, ["lm[en]", "words"], restarts=12) == result
    values = np.array([result.weights[name] for name in data.names])
    assert count_errors(data, values) == result.errors


@pytest.mark.parametrize("seed", range(4))
def test_tuning_never_ends_above_its_start(seed: int) -> None:
    data = random_set(seed, lists=5)
    start = {"am": 1.0, "lm[en]": 3.0, "words": -2.0}
    at_start = count_errors(data, np.array([1.0, 3.0, -2.0]))
    assert tune(data, start, ["words"], restarts=1, seed=seed).errors <= at_start


def test_nothing_free_gives_the_start_back() -> None:
    data = random_set(1)
    start = {"am": 1.0, "lm[en]": 0.5, "words": 0.0}
    result = tune(data, start, [], restarts=2)
    assert (result.weights, result.flatness) == (start, ())


def test_a_column_without_spread_can_still_be_free() -> None:
    data = TuningSet(
        ("am", "x"), np.array([[-1.0, 2.0], [-2.0, 2.0]]), np.array([1, 0]), np.array([0]), 4
    )
    assert tune(data, {"am": 1.0, "x": 0.0}, ["x"]).errors == 1


def test_unusable_sets_are_refused() -> None:
    empty = np.empty(0, np.int64)
    with pytest.raises(DataError, match="0 lists"):
        TuningSet(("am",), np.empty((0, 1)), empty, empty, 0)
    with pytest.raises(NonFiniteError, match="am of hypothesis 1"):
        TuningSet(("am",), np.array([[0.0], [-np.inf]]), np.zeros(2, int), np.zeros(1, int), 3)
    with pytest.raises(NonFiniteError, match=r"am of hypothesis 1 is -1e\+308; .* at most 1e\+100"):
        TuningSet(("am",), np.array([[0.0], [-1e308]]), np.zeros(2, int), np.zeros(1, int), 3)
    with pytest.raises(DataError, match="the stored scores have am"):
        tune(random_set(0), {"am": 1.0, "lm[en]": 0.0, "words": 0.0}, ["lm[de]"])


@pytest.mark.filterwarnings("error")
def test_the_largest_scores_that_are_taken_do_not_overflow() -> None:
    features = np.array([[-1e100, 1.0], [1e100, -2.0], [0.0, 1e100], [1e100, 0.0]])
    data = TuningSet(("am", "x"), features, np.array([1, 0, 0, 1]), np.array([0, 2]), 4)
    assert tune(data, {"am": 1.0, "x": 0.0}, ["x"]).errors == 0


def test_thousands_of_real_lists_tune_in_seconds(shared_data: Path) -> None:
    path = shared_data / "nbest" / "ls_test_clean.w2v2_base960h_4gram.jsonl.gz"
    utterances = list(read_utterances(path))
    sizes = np.array([len(utterance.hypotheses) for utterance in utterances])
    hypotheses = [hypothesis for utterance in utterances for hypothesis in utterance.hypotheses]
    data = TuningSet(
        names=("am", "extra[total]", "words"),
        features=np.array(
            [[h.am_score, h.extra["total"], len(h.text.split())] for h in hypotheses]
        ),
        errors=np.concatenate(
            [error_counts(str(u.ref), [h.text for h in u.hypotheses]) for u in utterances]
        ),
        starts=np.cumsum(sizes) - sizes,
        words=sum(len(str(utterance.ref).split()) for utterance in utterances),
    )
    assert count_errors(data, np.array([1.0, 0.0, 0.0])) == 1530
    began = time.perf_counter()
    start = {"am": 1.0, "extra[total]": 0.0, "words": 0.0}
    result = tune(data, start, ["extra[total]", "words"])
    assert time.perf_counter() - began < 60.0
    assert result.errors < 1362  # the decoder's own weights
