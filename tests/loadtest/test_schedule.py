"""Arrivals are as many as they should be, where they should be, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest import schedule


def test_a_steady_load_is_poisson() -> None:
    times = schedule.steady(200.0, 50.0, seed=3)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert (gaps >= 0).all()
    assert times[-1] <= 50.0


def test_a_ramp_has_three_quarters_of_its_arrivals_in_its_second_half() -> None:
    times = schedule.ramp(0.0, 400.0, 50.0, seed=3)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert (times > 25.0).mean() == pytest.approx(0.75, abs=0.02)
    falling = schedule.ramp(400.0, 0.0, 50.0, seed=3)
    assert (falling > 25.0).mean() == pytest.approx(0.25, abs=0.02)


def test_no_rate_is_no_arrival() -> None:
    assert len(schedule.steady(0.0, 10.0, seed=0)) == 0


def test_bursts_come_on_top_at_one_moment_each() -> None:
    times = schedule.bursts(10.0, 8.0, size=25, every_s=2.0, seed=0)
    moments, counts = np.unique(times, return_counts=True)
    assert moments[counts == 25].tolist() == [1.0, 3.0, 5.0, 7.0]
    assert (np.diff(times) >= 0).all()


def test_the_same_seed_is_the_same_load_and_another_one_is_not() -> None:
    assert (schedule.steady(50.0, 5.0, 7) == schedule.steady(50.0, 5.0, 7)).all()
    other = schedule.steady(50.0, 5.0, 8)
    assert not np.array_equal(schedule.steady(50.0, 5.0, 7), other)


def test_shares_need_not_sum_to_one() -> None:
    chosen = schedule.drawn(10_000, [1.0, 3.0], seed=0)
    assert (chosen == 1).mean() == pytest.approx(0.75, abs=0.02)
