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
        ("seed: 3", "seed: -1", "seed is -1; need 0 to 4294967295"),
        ("name: tiny", "name: ../tiny", r"name is '../tiny'; need the name of a folder"),
        ("name: tiny", "name: ''", "name is ''; need the name of a folder"),
        ("vocab_from: [tiny.txt.gz]", "vocab_from: []", "vocab_from is empty; name what"),
        ("  dev_lines: 20", "  dev: tiny.txt.gz", "dev is tiny.txt.gz, which is in train"),
        ("  dev_lines: 20", "  dev: ./tiny.txt.gz", "dev is ./tiny.txt.gz, which is in train"),
        (
            "  held_out: tiny.txt.gz\n  dev_lines: 20\n  test_lines: 20\n",
            "  dev: dev.txt.gz\n  test: a/../dev.txt.gz\n",
            "test is a/../dev.txt.gz, which is dev; weights are chosen",
        ),
        (
            "  vocab_size: 64",
            "  vocab_size: 70007",
            "vocab_size is 70007; need 3 to 65536, as tokens",
        ),
        (
            "  dev_lines: 20",
            "  merge: 0.6\n  context: 0.6\n  dev_lines: 20",
            "merge is 0.6, context is",
        ),
        ("{steps: 150,", "{steps: 150, eval_every: 0,", "train: eval_every is 0; need at least 1"),
        ("{steps: 150,", "{steps: -5,", "train: steps is -5; need at least 0"),
        ("{steps: 150,", "{steps: 150, decay_share: 3,", "train: decay_share is 3.0; need 0 to 1"),
        ("{steps: 150,", "{steps: 150, dropout: 1,", "train: dropout is 1.0; need at least 0 and"),
        ("{steps: 100,", "{steps: 100, kl_weight: 9,", "quantize: kl_weight is 9.0; need 0 to 1"),
        ("{steps: 100,", "{steps: 100, warmup_steps: -1,", "quantize: warmup_steps is -1; need at"),
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
