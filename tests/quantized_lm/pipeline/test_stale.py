"""What a stage left is used by the recipe, text and teacher it was made of, and by no other."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quantized_lm.artifact import bundled_path
from quantized_lm.errors import DataError, RecipeError
from quantized_lm.pipeline.corpus import prepare_corpus
from quantized_lm.pipeline.evaluate import evaluate
from quantized_lm.pipeline.export import RunFolders, export
from quantized_lm.pipeline.quantize import load_teacher, quantize
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.sensitivity import measure_sensitivity, read_current
from quantized_lm.pipeline.train import train
from tests.conftest import TinyRun
from tests.tiny import tiny_recipe


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(tiny_run.out, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def with_vocabulary(recipe: Recipe, size: int) -> Recipe:
    corpus = replace(recipe.corpus, vocab_size=size)
    return replace(recipe, corpus=corpus, model={**recipe.model, "vocab_size": size})


def export_of(recipe: Recipe, run: Path) -> Path:
    folders = RunFolders(run, run / "quantize")
    return export(recipe, b"", folders=folders, out=run / "packed", default_weights={})


def test_other_text_of_the_same_name_is_not_trained_on_and_replaces_nothing(
    tiny_run: TinyRun, run: Path, tmp_path: Path
) -> None:
    with gzip.open(tmp_path / "tiny.txt.gz", "wt", encoding="utf-8") as handle:
        handle.write("a king finds a letter at night\n" * 1200)
    before = content(run)
    remedies = "go back to that, delete .*/train to begin it anew, or name another run's folder"
    with pytest.raises(DataError, match=f"from other text; {remedies}"):
        train(tiny_run.recipe, data=tmp_path, out=run)
    assert content(run) == before


def test_another_corpus_recipe_replaces_nothing_either(tiny_run: TinyRun, run: Path) -> None:
    before = content(run)
    other = with_vocabulary(tiny_run.recipe, 60)
    with pytest.raises(DataError, match="made by another recipe"):
        train(other, data=tiny_run.data, out=run)
    assert content(run) == before


@pytest.mark.parametrize(
    "stage",
    [
        load_teacher,
        lambda recipe, run: quantize(recipe, run=run, out=run / "quantize"),
        export_of,
        lambda recipe, run: evaluate(recipe, run=run, artifact=run / "tiny"),
    ],
    ids=["teacher", "quantize", "export", "perplexity"],
)
def test_a_corpus_is_opened_by_its_own_recipe_alone(
    tiny_run: TinyRun, stage: Callable[[Recipe, Path], object]
) -> None:
    other = replace(tiny_run.recipe, corpus=replace(tiny_run.recipe.corpus, test_lines=50))
    with pytest.raises(DataError, match="a recipe with another `corpus`; run `secondpass train`"):
        stage(other, tiny_run.out)


def test_a_student_is_packed_as_it_was_trained_or_not_at_all(tiny_run: TinyRun) -> None:
    for change in ({"formats": {"*": "1bit"}}, {"method": "rated"}):
        plan = replace(tiny_run.recipe.quantize, **change)
        with pytest.raises(DataError, match=r"quantize.weights\.pt was made by another recipe"):
            export_of(replace(tiny_run.recipe, quantize=plan), tiny_run.out)
    assert not (tiny_run.out / "packed").exists()


def test_a_teacher_of_other_weights_or_sizes_is_refused(tiny_run: TinyRun) -> None:
    wider = replace(tiny_run.recipe, model={**tiny_run.recipe.model, "ffn_dim": 32})
    with pytest.raises(DataError, match=r"train.weights\.pt was made by another recipe"):
        load_teacher(wider, tiny_run.out)


def test_nothing_is_quantized_before_training_ends(tiny_run: TinyRun) -> None:
    with pytest.raises(DataError, match="has made 60 updates of 80; run `secondpass train` to its"):
        quantize(tiny_recipe(steps=80), run=tiny_run.out, out=tiny_run.out / "other")


def test_the_student_of_a_teacher_that_trained_on_is_stale(tiny_run: TinyRun, run: Path) -> None:
    longer = tiny_recipe(steps=64)
    train(longer, data=tiny_run.data, out=run)
    with pytest.raises(DataError, match=r"quantize.weights\.pt was made by another recipe"):
        export_of(longer, run)


def test_runs_of_earlier_versions_which_name_nothing_are_refused(
    tiny_run: TinyRun, run: Path
) -> None:
    weights = run / "train" / "weights.pt"
    torch.save({"model": torch.load(weights)["model"]}, weights)
    with pytest.raises(DataError, match="made by another recipe"):
        load_teacher(tiny_run.recipe, run)
    state = run / "corpus" / "corpus.json"
    named = json.loads(state.read_text())
    state.write_text(json.dumps({name: named[name] for name in ("key", "words")}))
    with pytest.raises(DataError, match="a recipe with another `corpus`"):
        load_teacher(tiny_run.recipe, run)
    prepare_corpus(tiny_run.recipe.corpus, data=tiny_run.data, out=run / "corpus")
    assert json.loads(state.read_text()) == named


def test_a_run_is_not_shortened(tiny_run: TinyRun) -> None:
    with pytest.raises(RecipeError, match=r"steps is 40, but .* has made 60; need at least"):
        train(tiny_recipe(steps=40), data=tiny_run.data, out=tiny_run.out)


def test_a_model_of_another_vocabulary_is_not_measured_on_these_tokens(tiny_run: TinyRun) -> None:
    with pytest.raises(DataError, match="has another vocabulary than the corpus"):
        evaluate(tiny_run.recipe, run=tiny_run.out, artifact=bundled_path("en-small"))


def test_sensitivities_of_other_weights_are_not_allocated_by(tiny_run: TinyRun, run: Path) -> None:
    measured = measure_sensitivity(
        tiny_run.recipe,
        metric="kl",
        choices=("1bit", "2bit"),
        run=run,
        out=run / "sensitivity",
        windows=4,
    )
    assert read_current(tiny_run.recipe, "kl", run=run) == measured
    longer = tiny_recipe(steps=64)
    train(longer, data=tiny_run.data, out=run)
    with pytest.raises(DataError, match="of other weights or text; run `secondpass sensitivity`"):
        read_current(longer, "kl", run=run)


def test_a_student_in_the_making_is_not_packed(tiny_run: TinyRun, run: Path) -> None:
    history = run / "quantize" / "history.jsonl"
    rows = history.read_text().splitlines(keepends=True)
    made = json.loads(rows[-2])["step"]
    history.write_text("".join(rows[:-1]))
    with pytest.raises(
        DataError, match=f"has made {made} updates of 20; run `secondpass quantize`"
    ):
        export_of(tiny_run.recipe, run)
    history.unlink()
    with pytest.raises(DataError, match="has made 0 updates of 20; run `secondpass quantize` to"):
        export_of(tiny_run.recipe, run)


def test_a_packed_model_is_not_measured_beside_a_teacher_that_trained_on(
    tiny_run: TinyRun, run: Path
) -> None:
    packed = export_of(tiny_run.recipe, run)
    longer = tiny_recipe(steps=64)
    train(longer, data=tiny_run.data, out=run)
    with pytest.raises(DataError, match="tiny packs another float model than the one that"):
        evaluate(longer, run=run, artifact=packed)


def test_a_damaged_account_of_the_corpus_is_made_anew(tiny_run: TinyRun, run: Path) -> None:
    state = run / "corpus" / "corpus.json"
    whole = json.loads(state.read_text())
    state.write_text(state.read_text()[:20])
    with pytest.raises(DataError, match="holds no prepared corpus; run `secondpass train` first"):
        load_teacher(tiny_run.recipe, run)
    prepare_corpus(tiny_run.recipe.corpus, data=tiny_run.data, out=run / "corpus")
    assert json.loads(state.read_text()) == whole
