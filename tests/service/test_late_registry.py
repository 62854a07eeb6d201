"""What is counted late is seen by whoever looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import Counter

from service.late_registry import LateRegistry


def counting(registry: LateRegistry, name: str) -> tuple[Callable[[], None], list[str]]:
    """What counts one, and its name once it has."""
    counter = Counter(name, "Some.", registry=registry)
    counted: list[str] = []

    def count() -> None:
        counter.inc()
        counted.append(name)

    return count, counted


@pytest.mark.anyio
async def test_it_counts_after_the_turn_of_the_loop() -> None:
    registry = LateRegistry()
    count, counted = counting(registry, "a")
    registry.later(count)
    assert not counted
    await asyncio.sleep(0)
    assert counted == ["a"]
    await asyncio.sleep(0)
    assert registry.get_sample_value("a_total") == 1.0


@pytest.mark.anyio
async def test_who_looks_sees_what_is_still_to_be_counted() -> None:
    registry = LateRegistry()
    count, counted = counting(registry, "a")
    registry.later(count)
    assert registry.get_sample_value("a_total") == 1.0
    await asyncio.sleep(0)
    assert counted == ["a"]


@pytest.mark.anyio
async def test_what_cannot_be_counted_does_not_keep_others_from_it() -> None:
    registry, told = LateRegistry(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    count, _ = counting(registry, "a")

    def fail() -> None:
        raise RuntimeError("cannot be counted")

    registry.later(fail)
    registry.later(count)
    await asyncio.sleep(0)
    assert len(told) == 1
    assert registry.get_sample_value("a_total") == 1.0
