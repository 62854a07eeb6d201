"""Which work goes into the next pass: deadlines, room, turns, models."""

from __future__ import annotations

import pytest

from service.scheduler import Scheduler
from tests.service.engine_fakes import Clock, DoublingModel, engine, job, run, search


def two_models(seconds: float = 0.0) -> tuple[DoublingModel, DoublingModel, Clock]:
    """Models "a" and "b" that share a clock and a list of passes."""
    clock = Clock()
    a = DoublingModel("a", clock, lambda _nodes, _pieces: seconds)
    return a, DoublingModel("b", clock, a.seconds, a.passes), clock


def learned(seconds: float) -> tuple[DoublingModel, Scheduler]:
    """A model whose passes take that long, and an engine that knows it."""
    model = DoublingModel(seconds=lambda _nodes, _pieces: seconds)
    scheduler = engine(model.clock, budget=1)
    for _ in range(60):
        scheduler.submit([job(model, 0, by_s=1e9)])
        run(scheduler)
    model.passes.clear()
    return model, scheduler


def test_the_earliest_deadline_is_first_and_arrival_decides_between_equal_ones() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    for number, by_s in ((1, 30.0), (2, 10.0), (3, 30.0), (4, 20.0), (5, 10.0)):
        scheduler.submit([job(model, number, 10, by_s=by_s)])
    run(scheduler)
    assert [numbers for _, numbers in model.passes] == [[2], [5], [4], [1], [3]]


def test_a_large_job_is_overtaken_by_none_with_a_later_deadline() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    scheduler.submit([job(model, 1, 6), job(model, 2, 6), job(model, 3, 1)])
    run(scheduler)
    assert [numbers for _, numbers in model.passes] == [[1], [2, 3]]


def test_a_job_too_large_for_the_room_left_leads_the_next_pass() -> None:
    """What runs sits out, in turn, however much there is and however long it takes."""
    model = DoublingModel()
    scheduler = engine(model.clock)
    scheduler.submit([search(model, 1, 6, waves=6, by_s=5.0)])
    scheduler.step()
    (large,) = scheduler.submit([job(model, 2, 10, waves=2, by_s=9.0)])
    run(scheduler)
    assert large.done()
    assert [numbers for _, numbers in model.passes] == [[1], [2], [1], [2], [1], [1], [1], [1]]


def test_one_search_waits_for_the_room_of_another_and_others_do_not_wait_with_it() -> None:
    model = DoublingModel()
    scheduler = engine(model.clock)
    scheduler.submit([search(model, 1, 6, waves=3)])
    scheduler.step()
    scheduler.submit([search(model, 2, 6, waves=2), search(model, 3, 1, waves=1), job(model, 4, 4)])
    run(scheduler)
    assert [sorted(numbers) for _, numbers in model.passes] == [[1], [1, 4], [1], [2, 3], [2]]


def test_the_model_with_the_earliest_deadline_is_next() -> None:
    a, b, clock = two_models()
    scheduler = engine(clock)
    scheduler.submit([job(a, 1, by_s=20.0), job(b, 2, by_s=10.0), job(a, 3, by_s=30.0)])
    run(scheduler)
    assert a.passes == [("b", [2]), ("a", [1, 3])]


def test_work_of_one_model_does_not_wait_for_the_end_of_another_models_search() -> None:
    a, b, clock = two_models()
    scheduler = engine(clock)
    scheduler.submit([search(a, 1, waves=5, by_s=1.0)])
    scheduler.step()
    scheduler.submit([job(b, 2, by_s=9.0), job(b, 3, 10, by_s=9.0)])
    run(scheduler)
    assert [name for name, _ in a.passes] == ["a", "b", "a", "b", "a", "a", "a"]


def test_searches_of_several_models_take_turns() -> None:
    a, b, clock = two_models()
    scheduler = engine(clock)
    scheduler.submit([search(a, 1, waves=3, by_s=1.0)])
    scheduler.submit([search(b, 2, waves=3, by_s=9.0)])
    run(scheduler)
    assert [name for name, _ in a.passes] == ["a", "b", "a", "b", "a", "b"]


def test_a_search_goes_on_under_a_steady_stream_of_other_work() -> None:
    a, b, clock = two_models()
    scheduler = engine(clock)
    (found,) = scheduler.submit([search(a, 1, waves=10, by_s=99.0)])
    scheduler.step()
    for number in range(10, 50):
        scheduler.submit([job(b, number, 10, by_s=9.0)])
        scheduler.step()
    assert found.done()
    assert [name for name, _ in a.passes[:20]].count("a") == 10


def test_nothing_joins_a_pass_that_would_make_it_late_for_what_is_in_it() -> None:
    model = DoublingModel(seconds=lambda nodes, _pieces: nodes * 1.0)
    scheduler = engine(model.clock)
    for number in range(150):
        scheduler.submit([job(model, number, 1 + number % 3, by_s=1e9)])
        run(scheduler)
    model.passes.clear()
    now_s = model.clock()
    scheduler.submit([job(model, 1, 1, by_s=now_s + 2.5)])
    scheduler.submit([job(model, 2, 1, by_s=now_s + 99.0)])
    scheduler.submit([job(model, 3, 2, by_s=now_s + 99.5)])
    scheduler.submit([job(model, 4, 1, by_s=now_s + 99.9)])
    run(scheduler)
    assert [numbers for _, numbers in model.passes] == [[1, 2], [3, 4]]


def test_what_would_be_late_is_given_up_before_the_engine_spends_time_on_it() -> None:
    model, scheduler = learned(1.0)
    now_s = model.clock()
    (first,) = scheduler.submit([job(model, 1, by_s=now_s + 5.0)])
    (second,) = scheduler.submit([job(model, 2, by_s=now_s + 9.0)])
    model.clock.now_s += 4.5
    run(scheduler)
    assert first.result(0) is None
    assert second.result(0) is not None
    assert [numbers for _, numbers in model.passes] == [[2]]


def test_a_prediction_alone_never_leaves_the_engine_idle() -> None:
    """Or a cost that was once too high would stay so, as nothing could show that it is not."""
    model, scheduler = learned(5.0)
    model.seconds = lambda _nodes, _pieces: 0.001
    answers = []
    for _ in range(250):
        (future,) = scheduler.submit([job(model, 1, by_s=model.clock() + 0.1)])
        run(scheduler)
        answers.append(future.result(0))
    assert all(answers)
    assert scheduler.predicted_wait_s() == 0.0
    (_,) = scheduler.submit([job(model, 1)])
    assert scheduler.predicted_wait_s() == pytest.approx(0.001, rel=0.5)


@pytest.mark.parametrize(
    ("fixed_s", "waited_s", "shared"),
    [
        (0.0, 0.0, [[1, 2], [3, 4], [5]]),
        (0.1, 0.0, [[1, 2], [3, 4], [5]]),
        (0.0, 100.0, [[1, 2], [3, 4], [5]]),
        (0.1, 100.0, [[1, 2, 3, 4, 5]]),
    ],
)
def test_a_pass_is_long_only_if_many_wait_and_its_fixed_cost_counts(
    fixed_s: float, waited_s: float, shared: list[list[int]]
) -> None:
    """All that is in a pass ends with it, so a longer one delays who came first."""
    model = DoublingModel(seconds=lambda nodes, _pieces: fixed_s + 0.1 * nodes)
    scheduler = engine(model.clock)
    for count in (1, 2) * 40:
        scheduler.submit([job(model, 0, by_s=1e9)] * count)
        run(scheduler)
    model.passes.clear()
    scheduler.submit([job(model, number, by_s=1e9) for number in range(1, 6)])
    model.clock.now_s += waited_s
    run(scheduler)
    assert [numbers for _, numbers in model.passes] == shared
