"""Fixtures of the service tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop uvicorn uses."""
    return "asyncio"
