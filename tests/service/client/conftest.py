"""Each client test runs with both clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.service.client.driving import Driven, World

Drive = Callable[..., Driven]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def drive(request: pytest.FixtureRequest) -> Iterator[Drive]:
    """Makes a client of a world, and closes it."""
    made: list[Driven] = []

    def make(world: World, **settings: Any) -> Driven:
        made.append(Driven(world, is_async=request.param, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
