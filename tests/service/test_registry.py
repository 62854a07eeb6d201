"""What is refused before the first request."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from quantized_lm.errors import ArtifactIntegrityError
from service.app import create_app
from service.core import start_core
from service.errors import ModelConflictError, ModelNotFoundError
from service.metrics import Metrics
from service.registry import Registry, load_registry
from service.settings import Settings
from tests.fakes import FakeLoader, fake_loaded


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ModelConflictError, match="tiny, tiny"):
        Registry([fake_loaded(), fake_loaded()])


def test_no_model_is_refused() -> None:
    with pytest.raises(ModelConflictError):
        Registry([])


def test_without_a_name_only_an_only_model_is_chosen() -> None:
    one, two = fake_loaded("one"), fake_loaded("two")
    assert Registry([one]).choose(None) == [one]
    with pytest.raises(ModelNotFoundError, match="one, two"):
        Registry([one, two]).choose(None)


def test_loading_is_timed() -> None:
    metrics, ticks = Metrics(), iter([10.0, 12.5])
    load_registry(
        [Path("tiny")],
        FakeLoader(fake_loaded()),
        backend="auto",
        metrics=metrics,
        clock=lambda: next(ticks),
    )
    value = metrics.registry.get_sample_value
    assert value("rescore_model_load_seconds", {"model": "tiny"}) == 2.5
    assert value("rescore_model_loaded", {"model": "tiny"}) == 1.0
    assert value("rescore_model_bytes", {"model": "tiny", "kind": "weights"}) == 16384.0


def start(**settings: Any) -> None:
    """Start what an app is made of, and stop it."""
    core = start_core(
        Settings(models=(Path("tiny"),), **settings),
        Metrics(),
        threading.Event(),
        FakeLoader(fake_loaded()),
    )
    core.engine.stop()


def test_a_budget_below_one_longest_text_is_refused_at_startup() -> None:
    start(budget_tokens=65)
    with pytest.raises(ModelConflictError, match=r"budget_tokens is 64.* 65 tree nodes"):
        start(budget_tokens=64)


@pytest.mark.anyio
async def test_an_app_without_its_artifact_does_not_start(tmp_path: Path) -> None:
    app = create_app(Settings(models=(tmp_path / "absent",)))
    with pytest.raises(ArtifactIntegrityError):
        async with app.router.lifespan_context(app):
            pass
