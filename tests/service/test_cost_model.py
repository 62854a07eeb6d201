"""What the engine's work is expected to take."""

from __future__ import annotations

import numpy as np
import pytest

from service.cost_model import PRIOR_S, TERMS, CostModel
from service.costs import Costs
from service.metrics import Metrics
from tests.service.engine_fakes import sample

TRUE_S = (30e-6, 2e-3, 0.4e-3)


def taught(passes: int, *, noise: float = 0.05, seed: int = 0) -> tuple[CostModel, list[float]]:
    """A model that saw that many passes, and how far off it was at each."""
    rng = np.random.default_rng(seed)
    model, errors = CostModel(), []
    for _ in range(passes):
        nodes, jobs = int(rng.integers(20, 3000)), int(rng.integers(1, 12))
        seconds = float(true_s(nodes, jobs) * rng.normal(1.0, noise))
        errors.append(abs(model.seconds(nodes, 1, jobs) / seconds - 1.0))
        model.observe(nodes, jobs, seconds)
    return model, errors


def true_s(nodes: int, jobs: int) -> float:
    """What such a pass takes."""
    return TRUE_S[0] * nodes + TRUE_S[1] + TRUE_S[2] * jobs


def terms_s(model: CostModel) -> list[float]:
    """Seconds per node, per forward pass and per job."""
    return [model.term(name) for name in TERMS]


def test_before_it_has_seen_a_pass_it_knows_the_prior() -> None:
    assert terms_s(CostModel()) == list(PRIOR_S)


def test_it_learns_what_passes_take_within_some_ten() -> None:
    _, errors = taught(200)
    assert max(errors[15:]) < 0.3
    assert float(np.median(errors[15:])) < 0.06


def test_the_terms_are_told_apart() -> None:
    model, _ = taught(400, noise=0.0)
    assert terms_s(model) == pytest.approx(TRUE_S, rel=0.1)


@pytest.mark.parametrize("factor", [0.2, 8.0])
def test_a_lasting_change_is_learned(factor: float) -> None:
    model, _ = taught(100)
    rng = np.random.default_rng(1)
    for _ in range(80):
        nodes, jobs = int(rng.integers(20, 3000)), int(rng.integers(1, 12))
        model.observe(nodes, jobs, factor * true_s(nodes, jobs))
    assert model.seconds(300, 1, 1) == pytest.approx(factor * true_s(300, 1), rel=0.15)


def test_one_outlier_says_little() -> None:
    model, _ = taught(100)
    before_s = model.seconds(300, 1, 1)
    model.observe(300, 1, 5.0)
    assert model.seconds(300, 1, 1) < 1.3 * before_s


def test_an_outlier_right_at_the_start_is_forgotten_soon() -> None:
    model = CostModel()
    model.observe(300, 1, 5.0)
    assert model.seconds(300, 1, 1) < 0.1
    for _ in range(40):
        model.observe(300, 1, true_s(300, 1))
    assert model.seconds(300, 1, 1) == pytest.approx(true_s(300, 1), rel=0.3)


def test_work_of_one_size_says_nothing_foolish_of_other_sizes() -> None:
    model = CostModel()
    for _ in range(500):
        model.observe(400, 1, 0.008)
    assert model.seconds(400, 1, 1) == pytest.approx(0.008, rel=0.05)
    assert model.seconds(4000, 1, 1) < 0.1
    assert model.seconds(40, 1, 1) > 0.0


def test_no_term_falls_below_zero() -> None:
    model = CostModel()
    rng = np.random.default_rng(0)
    for _ in range(300):  # the more nodes, the faster
        nodes = int(rng.integers(1, 1000))
        model.observe(nodes, 1, 0.1 / nodes)
        assert min(terms_s(model)) >= 0.0
    assert model.seconds(10_000, 9, 9) >= 0.0


def test_each_model_has_costs_of_its_own_which_the_metrics_show() -> None:
    metrics = Metrics()
    costs = Costs(metrics)
    costs.of("a").observe(100, 1, 0.5)
    assert costs.of("a") is costs.of("a")
    assert terms_s(costs.of("b")) == terms_s(CostModel())
    for term in TERMS:
        shown = sample(metrics, "rescore_cost_seconds", model="a", term=term)
        assert shown == costs.of("a").term(term)
