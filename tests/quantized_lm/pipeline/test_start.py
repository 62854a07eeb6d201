from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantized_lm.errors import ArtifactError, ArtifactIntegrityError, DataError, RecipeError
from quantized_lm.manifest import read_manifest
from quantized_lm.pipeline.checkpoint import load_weights
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.export import RunFolders, export
from quantized_lm.pipeline.quantize import load_student, quantize
from quantized_lm.pipeline.recipe import Recipe, load_recipe, whole_recipe
from quantized_lm.pipeline.train import train
from quantized_lm.records import without_defaults
from tests.conftest import TinyRun

SHORT = """
name: adapted
start: {start}
license: none
training_data: made up
corpus: {{train: [tiny.txt.gz], held_out: tiny.txt.gz, dev_lines: 30, test_lines: 30}}
train: {{steps: 4}}
"""


def as_yaml(recipe: Recipe) -> bytes:
    return yaml.safe_dump(
        json.loads(json.dumps(without_defaults(recipe))), sort_keys=False
    ).encode()


def exported(run: TinyRun, out: Path, recipe_yaml: bytes, lm_scale: float = 0.7) -> Path:
    return export(
        run.recipe,
        recipe_yaml,
        folders=RunFolders(run.out, run.out / "quantize"),
        out=out,
        default_weights={"lm_scale": lm_scale},
    )


@pytest.fixture
def base(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A packed model that holds the recipe it was made by."""
    return exported(tiny_run, tmp_path / "base", as_yaml(tiny_run.recipe))


def started(recipe: Recipe, base: Path, **train: Any) -> Recipe:
    corpus = replace(recipe.corpus, vocabulary="model", vocab_from=(str(base),))
    fields = replace(recipe.train, **train)
    return replace(recipe, name="adapted", start=str(base), corpus=corpus, train=fields)


def test_training_goes_on_from_what_the_packed_weights_stand_for(
    tiny_run: TinyRun, base: Path, tmp_path: Path
) -> None:
    weights = train(started(tiny_run.recipe, base, steps=0), data=tiny_run.data, out=tmp_path)
    student = load_student(tiny_run.recipe, run=tiny_run.out, out=tiny_run.out / "quantize")
    found = load_weights(weights)
    assert found.keys() == {*student.packed, *student.plain}
    for name, tensor in student.packed.items():
        assert torch.equal(found[name], torch.from_numpy(tensor.dequantize())), name
    for name, plain in student.plain.items():
        assert torch.equal(found[name], plain), name
    last = json.loads((tiny_run.out / "quantize" / "history.jsonl").read_text().splitlines()[-1])
    only = json.loads((tmp_path / "train" / "history.jsonl").read_text())
    assert only["dev_nll"] == pytest.approx(last["dev_nll"], abs=0.01)


def test_the_learning_curve_begins_with_the_start_and_the_best_is_kept(
    tiny_run: TinyRun, base: Path, tmp_path: Path
) -> None:
    worse = started(tiny_run.recipe, base, steps=2, matrix_lr=0.2, other_lr=0.05, warmup_steps=0)
    weights = train(worse, data=tiny_run.data, out=tmp_path)
    history = (tmp_path / "train" / "history.jsonl").read_text()
    rows = [json.loads(row) for row in history.splitlines()]
    assert [row["step"] for row in rows] == [0, 2]
    assert rows[0]["dev_nll"] < rows[1]["dev_nll"]
    student = load_student(tiny_run.recipe, run=tiny_run.out, out=tiny_run.out / "quantize")
    name, tensor = next(iter(student.packed.items()))
    assert torch.equal(load_weights(weights)[name], torch.from_numpy(tensor.dequantize()))


def test_the_vocabulary_is_the_model_s_whatever_the_text(
    tiny_run: TinyRun, base: Path, tmp_path: Path
) -> None:
    recipe = started(tiny_run.recipe, base, steps=0)
    recipe = replace(
        recipe, corpus=replace(recipe.corpus, train=("other.txt",), held_out="other.txt")
    )
    (tmp_path / "other.txt").write_text("a fox jumps\n" * 200)
    train(recipe, data=tmp_path, out=tmp_path / "run")
    corpus = open_corpus(recipe.corpus, tmp_path / "run" / "corpus")
    assert corpus.tokenizer.to_json() == (base / "tokenizer.json").read_bytes()


def test_a_started_model_is_packed_and_says_where_it_comes_from(
    tiny_run: TinyRun, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "adapted.yaml"
    path.write_text(SHORT.format(start=base) + "quantize: {steps: 2}\n")
    recipe, run = load_recipe(path), tmp_path / "run"
    train(recipe, data=tiny_run.data, out=run)
    quantize(recipe, run=run, out=run / "quantize")
    folders = RunFolders(run, run / "quantize")
    first = export(recipe, whole_recipe(path), folders=folders, out=run / "a", default_weights={})
    origin = read_manifest(first).provenance
    assert origin["start"] == str(base)
    assert origin["start_sha256"] == read_manifest(base).sha256
    path.write_text(SHORT.format(start=first))  # and from this one in turn
    again = load_recipe(path)
    assert again.model == recipe.model
    assert again.quantize == recipe.quantize


def test_a_recipe_that_starts_from_a_model_takes_the_rest_from_it(
    tiny_run: TinyRun, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "adapted.yaml"
    path.write_text(SHORT.format(start=base))
    whole = started(tiny_run.recipe, base, steps=4)
    corpus = replace(whole.corpus, dev_lines=30, test_lines=30)
    assert load_recipe(path) == replace(whole, corpus=corpus)
    assert yaml.safe_load(whole_recipe(path))["model"] == tiny_run.recipe.model


def test_a_recipe_of_its_own_stays_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_bytes(b"# a comment\nname: plain\n")
    assert whole_recipe(path) == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "lstm"}, "architecture is lstm; .*has transformer: leave it out"),
        ({"model": {"model_dim": 64}}, "model is .*'model_dim': 64"),
        ({"corpus": {"vocabulary": "bpe"}}, "corpus: vocabulary is bpe"),
        ({"corpus": {"vocab_from": ["tiny.txt.gz"]}}, "corpus: vocab_from is"),
        ({"corpus": {"text": {"case": "upper"}}}, "corpus: text is .*upper"),
        ({"start": 3}, "start is 3; need a model's folder or name"),
        ({"train": [1]}, r"train: got \[1\]; need a mapping"),
    ],
)
def test_what_does_not_fit_the_start_is_named(
    change: dict[str, Any], message: str, tiny_run: TinyRun, base: Path, tmp_path: Path
) -> None:
    value = yaml.safe_load(SHORT.format(start=base))
    for name, fields in change.items():
        mixes = isinstance(fields, dict)
        value[name] = {**value.get(name, {}), **fields} if mixes else fields
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump(value))
    with pytest.raises((RecipeError, ArtifactError), match=message):
        train(load_recipe(path), data=tiny_run.data, out=tmp_path / "run")


def test_a_start_that_is_not_there_or_damaged_is_refused(
    tiny_run: TinyRun, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "adapted.yaml"
    path.write_text(SHORT.format(start=tmp_path / "gone"))
    with pytest.raises(ArtifactError, match=r"no model .*gone.*; bundled: en-small"):
        load_recipe(path)
    path.write_text(SHORT.format(start=base))
    recipe = load_recipe(path)
    content = bytearray((base / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "weights.safetensors").write_bytes(content)
    with pytest.raises(ArtifactIntegrityError, match="does not match its sha256"):
        train(recipe, data=tiny_run.data, out=tmp_path / "run")


@pytest.mark.parametrize("recipe_yaml", [b"", b"name: tiny\n", b"- 1\n", b"corpus: 3\ntrain: []\n"])
def test_a_model_without_a_recipe_leaves_it_all_to_be_said(
    recipe_yaml: bytes, tiny_run: TinyRun, tmp_path: Path
) -> None:
    path = tmp_path / "adapted.yaml"
    path.write_text(SHORT.format(start=exported(tiny_run, tmp_path / "base", recipe_yaml)))
    with pytest.raises(RecipeError, match="field 'architecture' is missing"):
        load_recipe(path)


def test_a_start_that_was_made_anew_is_another_run(
    tiny_run: TinyRun, base: Path, tmp_path: Path
) -> None:
    recipe = started(tiny_run.recipe, base, steps=2)
    train(recipe, data=tiny_run.data, out=tmp_path / "run")
    exported(tiny_run, base, as_yaml(tiny_run.recipe), lm_scale=0.8)
    with pytest.raises(DataError, match="another recipe"):
        train(recipe, data=tiny_run.data, out=tmp_path / "run")
