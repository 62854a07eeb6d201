from __future__ import annotations

import gzip
import json
import math
import shutil
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
import yaml

from quantized_lm.errors import RecipeError, SecondpassError
from quantized_lm.manifest import read_manifest
from quantized_lm.pipeline.reproduce import task as task_file
from quantized_lm.pipeline.reproduce.markdown import render
from quantized_lm.pipeline.reproduce.models import ArtifactStage, FloatStage
from quantized_lm.pipeline.reproduce.plan import make_plan
from quantized_lm.pipeline.reproduce.report import make_report
from quantized_lm.pipeline.reproduce.rows import read_row
from quantized_lm.pipeline.reproduce.store import Store
from quantized_lm.pipeline.reproduce.task import TASKS, load_task, merged, method_recipe

from .conftest import TINY_TASK, TinyTable, only_rows, run_plan, tiny_task


def test_later_layers_replace_single_fields_of_earlier_ones() -> None:
    task = tiny_task()
    task = replace(
        task,
        architectures={"lstm": {"model": {"model_dim": 8}, "train": {"steps": 2}}},
        sizes={
            "big": {"all": {"train": {"steps": 1, "window": 9}}, "lstm": {"train": {"window": 7}}}
        },
    )
    setting = task.setting("lstm", "big")
    assert setting.train.steps == 2  # architecture over the size's layer for all
    assert setting.train.window == 7  # the size's own for this architecture over that
    assert setting.train.matrix_lr == 0.02  # base
    assert setting.model == {"max_tokens": 48, "model_dim": 8, "vocab_size": 64}


def test_merging_changes_neither_side() -> None:
    lower, upper = {"a": {"b": 1}, "c": [1]}, {"a": {"d": 2}, "c": [2]}
    assert merged(lower, upper) == {"a": {"b": 1, "d": 2}, "c": [2]}
    assert lower == {"a": {"b": 1}, "c": [1]}
    assert upper == {"a": {"d": 2}, "c": [2]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 12", "stepz: 12", "unknown field 'stepz'; did you mean 'steps'"),
        ("kind: float,", "kind: flaot,", "kind is 'flaot'; need one of float, kept, uniform"),
        ("by: rounded", "by: round", "method is 'round'; need one of distilled, priced, rated"),
        ("metric: kl", "metric: kll", "metric is 'kll'; need one of manual, kl"),
        ("compression: 9,", "", "give either compression or bytes_of"),
        ("metric: nas, compression: 9", "metric: nas, bytes_of: 2bit", "takes its budget as"),
        ("format: 4bit:quinary,", "", "give either format or metric"),
        ("metric: kl, compression: 8", "metric: nas, compression: 8", "metric is 'nas'; need one"),
        ("format: 8bit,", "format: 8bit, bits: 8,", "unknown field 'bits'"),
        ("label: by KL, ", "", "field 'label' is missing"),
        ("cut: {all:", "cut: {lsmt:", "layer is 'lsmt'; need one of all, lstm"),
        ("name: mixed-kl,", "name: mixed-manual,", "row 'mixed-manual' is there twice"),
        ("run_first: [float32", "run_first: [flaot32", "no row matches 'flaot32'"),
        ("model: {num_layers: 1, model_dim: 32}", "model: {dim: 3}", "unknown field 'dim'"),
        ("8bit, by: rounded", "9bit, by: rounded", "no packed format is named '9bit'"),
        ("steps: 4}", "steps: 4, method: lerned}", "method is 'lerned'; need one of"),
        ("kind: float,", "kind: kept, share: 0.5,", "share is 0.5, which is step 6 of 12; need"),
        ("seed: 3", "seed: 3\ndefault_weights: {x: 1}", "default_weights has 'x'; known are"),
        ("  choices: [1bit", "  start: nowhere\n  choices: [1bit", "no model 'nowhere'"),
    ],
)
def test_a_wrong_task_is_refused_before_anything_runs(
    tmp_path: Path, text: Path, old: str, new: str, message: str
) -> None:
    assert old in TINY_TASK
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_TASK.replace(old, new))
    with pytest.raises(SecondpassError, match=message.replace("(", r"\(")):
        make_plan(load_task(str(path)), size="small", data=text)


def test_an_unknown_task_architecture_or_size_names_the_known_ones(text: Path) -> None:
    with pytest.raises(RecipeError, match="no task 'ptbb' ships with secondpass.*ptb"):
        load_task("ptbb")
    with pytest.raises(RecipeError, match="size is 'huge'; need one of cut, small"):
        make_plan(tiny_task(), size="huge", data=text)
    with pytest.raises(RecipeError, match="architecture is 'rnn'; need one of lstm, transformer"):
        make_plan(tiny_task(), size="small", data=text, architectures=["rnn"])


def test_a_method_is_what_all_share_and_its_own_fields() -> None:
    setting = tiny_task().setting("lstm", "small")
    recipe = method_recipe(setting, "distilled", formats={"*": "2bit"}, settings={})
    assert (recipe.steps, recipe.batch_windows, recipe.formats) == (4, 4, {"*": "2bit"})


def test_a_task_replaces_single_fields_of_what_it_is_based_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_file, "COMMON", tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY_TASK)
    path = tmp_path / "mine.yaml"
    path.write_text("based_on: tiny\nname: mine\nbase: {train: {steps: 7}}\n")
    task = load_task(str(path))
    assert (task.name, task.title) == ("mine", "A made-up language")
    assert task.setting("lstm", "small").train.steps == 7
    assert task.setting("lstm", "small").train.window == 48
    path.write_text("based_on: nothing\n")
    with pytest.raises(RecipeError, match=r"nothing\.yaml cannot be read"):
        load_task(str(path))
    path.write_text("- a list\n")
    with pytest.raises(RecipeError, match="need a mapping of fields"):
        load_task(str(path))


def test_a_row_says_what_it_is() -> None:
    row = read_row(yaml.safe_load(TINY_TASK)["rows"][1], where="tiny")
    assert (row.name, row.label, row.kind.method) == ("rtn-8bit", "8 bits", "rounded")


@pytest.mark.parametrize("task", sorted(path.stem for path in TASKS.glob("*.yaml")))
def test_a_task_that_ships_can_be_laid_out_at_every_size(task: str, tmp_path: Path) -> None:
    read = load_task(task)
    for size in read.sizes:
        corpus = read.setting(next(iter(read.architectures)), size).corpus
        for name in {*corpus.train, *corpus.vocab_from, corpus.dev, corpus.test} - {""}:
            (tmp_path / name).write_bytes(gzip.compress(b"a line\n"))
    files = [one.file for one in read.lists]
    files += [f"{one.folder}/one.slf" for one in read.lattices]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"a line\n")
    for size in read.sizes:
        plan = make_plan(read, size=size, data=tmp_path, speech=tmp_path)
        assert plan.has_speech == bool(files)
        assert len(plan.cells) == len(read.rows) * len(read.architectures)


def packed_row(table: TinyTable, row: str = "qat-2bit") -> str:
    (cell,) = [cell for cell in table.plan.cells if cell.row.name == row]
    assert isinstance(cell.model, ArtifactStage)
    return str(cell.model.model_folder(table.store.folder))


def test_a_table_may_start_from_a_packed_model(
    text: Path, tiny_table: TinyTable, tmp_path: Path
) -> None:
    start = packed_row(tiny_table)
    task = only_rows(tiny_task(start=start, train={"matrix_lr": 0.001}), "float32", "small")
    corpus = {name: task.base["corpus"][name] for name in ("train", "held_out", "dev_lines")}
    base = {**task.base, "corpus": {**corpus, "test_lines": 30}, "model": {}}
    task = replace(task, base=base, architectures={"transformer": {}})
    plan = make_plan(task, size="small", data=text)
    whole, small = (cell.model for cell in plan.cells)
    assert isinstance(whole, FloatStage)
    assert isinstance(small, FloatStage)
    assert whole.recipe.model["model_dim"] == 32  # the start's
    assert small.recipe.start == ""  # its weights do not fit a narrower model
    assert small.recipe.corpus.vocabulary == "model"
    assert run_plan(plan, tmp_path, only="float32") == {}
    report = make_report(plan, Store(tmp_path), now=datetime.now(timezone.utc))
    assert f", going on from {start}@sha256:" in render(report, [])
    student = json.loads((Path(start) / "manifest.json").read_text())["provenance"]["quantize"]
    assert report.learning[0].tokens[0] == 0
    found = math.log(report.learning[0].perplexity[0])
    assert found == pytest.approx(student[-1]["dev_nll"], abs=0.01)


def test_another_model_to_start_from_is_another_stage(
    text: Path, tiny_table: TinyTable, tmp_path: Path
) -> None:
    shutil.copytree(packed_row(tiny_table), tmp_path / "model")
    task = only_rows(tiny_task(start=str(tmp_path / "model")), "float32", "small")
    corpus = {"vocabulary": "model", "vocab_from": [str(tmp_path / "model")]}
    task = replace(task, base=merged(task.base, {"corpus": corpus}))

    def keys() -> list[str]:
        plan = make_plan(task, size="small", data=text, architectures=["transformer"])
        return [cell.model.key for cell in plan.cells]

    before = keys()
    shutil.copytree(packed_row(tiny_table, "rtn-8bit"), tmp_path / "model", dirs_exist_ok=True)
    assert not set(before) & set(keys())
    with pytest.raises(RecipeError, match=r"architecture is lstm; .*has transformer"):
        make_plan(task, size="small", data=text, architectures=["lstm"])


def test_a_row_may_name_its_model_and_the_task_its_weights(
    text: Path, tiny_table: TinyTable
) -> None:
    def packed(**changes: object) -> ArtifactStage:
        task = only_rows(tiny_task(), "qat-2bit")
        row = {**task.rows[0], **({"model_name": "mine"} if changes else {})}
        task = replace(task, rows=(row,), default_weights=changes)  # type: ignore[arg-type]
        plan = make_plan(task, size="small", data=text, architectures=["transformer"])
        assert isinstance(plan.cells[0].model, ArtifactStage)
        return plan.cells[0].model

    usual, own = packed(), packed(lm_scale=0.7)
    assert usual.name == "tiny-transformer-qat-2bit"
    assert usual.key in {cell.model.key for cell in tiny_table.plan.cells}
    assert own.name == "mine"
    own.run(tiny_table.store.folder(own), tiny_table.store.folder)
    manifest = read_manifest(own.model_folder(tiny_table.store.folder))
    assert manifest.name == "mine"
    assert manifest.default_weights == {"am_scale": 1.0, "lm_scale": 0.7, "word_bonus": 0.0}


def test_a_rated_row_may_take_a_share_by_architecture(text: Path) -> None:
    def bits(**shares: float) -> dict[str, float]:
        row = {"name": "one", "kind": "rated", "label": "", "by": "rated", "compression": 8}
        rows = (row | {"format": "4bit:quinary", "share": 1.0, "shares": shares},)
        plan = make_plan(replace(tiny_task(), rows=rows, run_first=()), size="small", data=text)
        models = {cell.architecture: cell.model for cell in plan.cells}
        return {
            name: model.student.quantize.settings["bits"]
            for name, model in models.items()
            if isinstance(model, ArtifactStage)
        }

    whole, shared = bits(), bits(lstm=0.5)
    assert shared["transformer"] == whole["transformer"]
    assert shared["lstm"] == pytest.approx(0.5 * whole["lstm"], abs=1e-4)


def test_the_order_of_patterns_is_part_of_what_a_student_is(text: Path) -> None:
    def key(*patterns: str) -> str:
        overrides = {pattern: {"trusts_half_steps": True} for pattern in patterns}
        task = only_rows(tiny_task(), "qat-2bit")
        base = merged(task.base, {"methods": {"distilled": {"overrides": overrides}}})
        task = replace(task, base=base)
        plan = make_plan(task, size="small", data=text, architectures=["lstm"])
        return plan.cells[0].model.key

    assert key("embedding.*", "*") != key("*", "embedding.*")
