"""Fixtures of the service tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal

from tests.service.serving import Caller, running


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop uvicorn uses."""
    return "asyncio"


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    """An app with one fake model."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running()) as started:
        yield Caller(portal, started[0])
