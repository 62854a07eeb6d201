"""Whose turn it is, and what is left behind by a caller who has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.client.tasks import Tasks

Work = Callable[[], Coroutine[Any, Any, str]]


def after(event: asyncio.Event, begun: list[str], name: str) -> Work:
    async def work() -> str:
        begun.append(name)
        await event.wait()
        return name

    return work


async def turn_over() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def at_once() -> str:
    return "done"


@pytest.mark.anyio
async def test_callers_take_turns_in_their_order() -> None:
    tasks, event, begun = Tasks(2), asyncio.Event(), list[str]()
    callers = [asyncio.create_task(tasks.within(after(event, begun, n), 5)) for n in "abcd"]
    await turn_over()
    assert begun == ["a", "b"]
    event.set()
    assert await asyncio.gather(*callers) == begun == ["a", "b", "c", "d"]


@pytest.mark.anyio
async def test_work_that_takes_longer_is_left_to_its_task() -> None:
    tasks, event, begun = Tasks(1), asyncio.Event(), list[str]()
    with pytest.raises(TimeoutError, match="answer"):
        await tasks.within(after(event, begun, "late"), 0.01)
    with pytest.raises(TimeoutError, match="connection"):
        await tasks.within(after(event, begun, "waits"), 0.01)
    event.set()
    assert await tasks.within(at_once, 5) == "done"
    assert begun == ["late"]


@pytest.mark.anyio
async def test_a_caller_who_is_canceled_costs_nobody_a_turn() -> None:
    tasks, event, begun = Tasks(1), asyncio.Event(), list[str]()
    has_it, waits, is_next = (
        asyncio.create_task(tasks.within(after(event, begun, name), 5)) for name in "abc"
    )
    await turn_over()
    waits.cancel()
    has_it.cancel()
    await turn_over()
    assert [has_it.cancelled(), waits.cancelled(), begun] == [True, True, ["a"]]
    event.set()  # ends the work that has_it left
    while len(begun) < 2:
        await asyncio.sleep(0)
    assert await is_next == "c"
    assert await tasks.within(at_once, 5) == "done"


@pytest.mark.anyio
@pytest.mark.parametrize("steps", range(8))
async def test_nor_does_one_who_is_canceled_as_the_turn_comes(steps: int) -> None:
    tasks, event = Tasks(1), asyncio.Event()
    has_it = asyncio.create_task(tasks.within(after(event, [], "a"), 5))
    await turn_over()
    canceled = asyncio.create_task(tasks.within(at_once, 5))
    await turn_over()
    event.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    canceled.cancel()
    assert await asyncio.wait_for(tasks.within(at_once, 5), 1) == "done"
    assert await has_it == "a"


@pytest.mark.anyio
async def test_work_that_is_canceled_before_it_begins_gives_back_its_turn() -> None:
    tasks, others = Tasks(1), asyncio.all_tasks()
    caller = asyncio.create_task(tasks.within(at_once, 5))
    await asyncio.sleep(0)
    (work,) = asyncio.all_tasks() - others - {caller}
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await tasks.within(at_once, 5) == "done"


@pytest.mark.anyio
async def test_closing_cancels_what_does_not_end_by_itself() -> None:
    tasks, event, others = Tasks(2), asyncio.Event(), asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        await tasks.within(after(event, [], "never"), 0.01)
    assert len(asyncio.all_tasks() - others) == 1
    await tasks.close()
    assert asyncio.all_tasks() == others
    await tasks.close()
