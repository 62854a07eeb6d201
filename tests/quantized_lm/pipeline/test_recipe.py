from __future__ import annotations

from pathlib import Path

import pytest

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.recipe import load_recipe
from tests.tiny import TINY_YAML

RECIPES = Path(__file__).parents[3] / "quantized_lm" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_reads(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 3", "sead: 3", "unknown field 'sead'"),
        ("seed: 3", "", "field 'seed' is missing"),
        ("seed: 3", "seed: three", "seed: got 'three'; need int"),
        ("dev_lines: 20", "dev_lines: [20]", r"corpus: dev_lines: got \[20\]; need int"),
        ("{steps: 150,", "{steps: true,", "train: steps: got True; need int"),
        ("[tiny.txt.gz]", "[3]", "corpus: train: got 3; need str"),
        ("license: none", "license: {a: 1}", "license: got {'a': 1}; need str"),
    ],
)
def test_a_slip_in_a_recipe_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "slip.yaml"
    path.write_text(TINY_YAML.replace(old, new, 1))
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1")
    with pytest.raises(RecipeError, match="need a mapping"):
        load_recipe(path)
    path.write_text("a: [")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "absent.yaml")
