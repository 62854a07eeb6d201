"""Fixtures shared by all tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from quantized_lm.pipeline.export import RunFolders, export
from quantized_lm.pipeline.quantize import quantize
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.train import train
from tests.tiny import tiny_recipe, write_text


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real n-best lists and text that do not ship with the project; skips where they are absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data beside the checkout ({folder.name}/ of a sibling folder)")
    return folder


@dataclass(frozen=True)
class TinyRun:
    """A run folder with every stage done."""

    recipe: Recipe
    data: Path
    out: Path
    artifact: Path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Corpus, float model, student and artifact of the made-up language, made once."""
    data = tmp_path_factory.mktemp("text")
    write_text(data)
    out = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe()
    train(recipe, data=data, out=out)
    quantize(recipe, run=out, out=out / "quantize")
    artifact = export(
        recipe,
        b"name: tiny\n",
        folders=RunFolders(out, out / "quantize"),
        out=out / "tiny",
        default_weights={"lm_scale": 0.7},
    )
    return TinyRun(recipe, data, out, artifact)
