"""Claims about timing in turns, failing alone, and comparing scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import pytest

from quantized_lm.bench.rounds import RoundOptions, agreement, time_systems
from quantized_lm.bench.systems import OWN, SystemSpec
from quantized_lm.bench.workers import WorkerError

from .conftest import FakeWorker

T = TypeVar("T")
OTHER = SystemSpec("other", "transformers", "float32", is_float=True)
OURS = SystemSpec("ours", OWN, "4bit", "cpu")
SCORES = [[-1.0, -2.0], [-3.0, -4.0]]


def untracked(items: Sequence[T], _: str) -> Iterable[T]:
    """No progress is shown."""
    return items


class Starts:
    """Makes fake workers and keeps them."""

    def __init__(self, **fails_after: int) -> None:
        self.fails_after = fails_after
        self.workers: list[FakeWorker] = []

    def __call__(self, spec: SystemSpec) -> FakeWorker:
        if self.fails_after.get(spec.name) == 0:
            raise WorkerError("not installed")
        seconds = [0.002] if spec == OTHER else [0.001]
        worker = FakeWorker(spec, SCORES, seconds, self.fails_after.get(spec.name))
        self.workers.append(worker)
        return worker


def test_a_round_asks_everybody_for_every_list() -> None:
    starts = Starts()
    options = RoundOptions(rounds=3, processes=0)
    other, ours = time_systems([OTHER, OURS], starts, 2, options, untracked)
    assert other.rounds_ms == pytest.approx((3.0, 3.0, 3.0))  # mean of 2 and 4 ms
    assert ours.quantile_ms(0.5) == pytest.approx(1.5)
    assert ours.scores == SCORES
    assert all(worker.is_stopped for worker in starts.workers)


def test_only_our_packed_systems_get_fresh_processes() -> None:
    starts = Starts()
    options = RoundOptions(rounds=1, processes=4, passes=2)
    other, ours = time_systems([OTHER, OURS], starts, 2, options, untracked)
    assert other.processes_ms == ()
    assert ours.processes_ms == pytest.approx((1.5,) * 4)
    assert len(starts.workers) == 2 + 4
    assert all(worker.is_stopped for worker in starts.workers)


def test_who_does_not_start_is_named_and_hinders_nobody() -> None:
    starts = Starts(other=0)
    other, ours = time_systems([OTHER, OURS], starts, 2, RoundOptions(2, 1, 1), untracked)
    assert (other.failure, other.rounds_ms) == ("not installed", ())
    assert ours.failure is None


@pytest.mark.parametrize("asked", [1, 3])
def test_who_fails_later_is_named_too(asked: int) -> None:
    starts = Starts(ours=asked)
    _, ours = time_systems([OTHER, OURS], starts, 2, RoundOptions(2, 1, 1), untracked)
    assert ours.failure == "it fell over"


def test_agreement_is_relative_and_sees_what_changes_an_order() -> None:
    others = [[-10.0, -20.0]]
    assert agreement(others, others).max_difference == 0
    assert agreement([[-11.0, -20.0]], others).max_difference == pytest.approx(0.1)
    shifted = agreement([[-11.0, -21.0]], others)
    assert shifted.ranking_noise == pytest.approx(0, abs=1e-12)
    assert agreement([[-11.0, -19.0]], others).ranking_noise == pytest.approx(1 / 5)
