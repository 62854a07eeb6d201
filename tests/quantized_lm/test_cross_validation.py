"""Each list is counted once, by weights that have not seen it."""

from __future__ import annotations

import numpy as np
import pytest

from quantized_lm.cross_validation import folds_of, unseen_errors
from quantized_lm.tuning import TuningSet, count_errors, tune

NAMES = ("am", "lm[en]")
START = {"am": 1.0, "lm[en]": 0.0}


def lists_of(features: list[list[float]], errors: list[int], size: int) -> TuningSet:
    starts = np.arange(0, len(errors), size)
    return TuningSet(NAMES, np.array(features), np.array(errors), starts, 10 * starts.size)


def test_a_group_is_never_split_and_folds_are_of_one_size() -> None:
    groups = [f"speaker {index % 12}" for index in range(120)]
    fold = folds_of(groups, folds=5)
    assert set(fold.tolist()) == set(range(5))
    assert len({(name, each) for name, each in zip(groups, fold.tolist(), strict=True)}) == 12
    speakers = [len(set(np.array(groups)[fold == each])) for each in range(5)]
    assert max(speakers) - min(speakers) <= 1
    assert (folds_of(groups, folds=5) == fold).all()
    assert (folds_of(groups, folds=5, seed=1) != fold).any()


@pytest.mark.parametrize(("lists", "folds"), [(40, 5), (3, 3), (1, 1), (0, 0)])
def test_where_speakers_are_few_lists_are_dealt_alone(lists: int, folds: int) -> None:
    assert np.unique(folds_of(["one"] * lists, folds=5)).size == folds


def test_any_number_of_folds_above_that_of_lists_is_a_fold_for_each() -> None:
    groups = ["a", "a", "b", "c"]
    fold = folds_of(groups, folds=5)
    assert sorted(fold.tolist()) == [0, 1, 2, 3]
    assert (folds_of(groups, folds=10**20) == fold).all()


def test_one_fold_is_asked_for() -> None:
    assert set(folds_of(["a", "b"], folds=1).tolist()) == {0}


def test_each_fold_is_counted_by_weights_of_the_others() -> None:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(120, 2)) * [1.0, 4.0]
    errors = generator.integers(0, 5, 120)
    data = TuningSet(NAMES, features, errors, np.arange(0, 120, 4), 300)
    fold = np.arange(30) % 3
    found = list(unseen_errors(data, fold, START, ["lm[en]"]))
    for each, counted in enumerate(found):
        rows = np.repeat(fold == each, 4)
        rest = TuningSet(NAMES, features[~rows], errors[~rows], np.arange(0, 80, 4), 300)
        weights = np.array([tune(rest, START, ["lm[en]"]).weights[name] for name in NAMES])
        own = TuningSet(NAMES, features[rows], errors[rows], np.arange(0, 40, 4), 300)
        assert counted == count_errors(own, weights)
    assert sum(found) >= tune(data, START, ["lm[en]"]).errors


def test_a_gain_by_chance_is_not_there_on_unseen_lists() -> None:
    # In each list the LM alone tells right from wrong, for half of the lists with the wrong sign.
    features = [[0.0, 0.0], [0.0, 1.0]] * 20
    errors = [[0, 1], [1, 0]]
    chance = lists_of(features, [e for index in range(20) for e in errors[index % 2]], 2)
    fold = np.arange(20) % 2  # what one half teaches is wrong on the other
    assert tune(chance, START, ["lm[en]"]).errors == 10
    assert sum(unseen_errors(chance, fold, START, ["lm[en]"])) == 20
