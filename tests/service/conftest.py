"""Fixtures of the service tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from tests.conftest import TinyRun
from tests.service.artifacts import copy_of
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


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty model folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def served(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A model that is given at startup, outside of the model folder."""
    return copy_of(tiny_run.artifact, tmp_path / "given")
