from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.reproduce import choices, models
from quantized_lm.pipeline.reproduce.plan import Plan, make_plan
from quantized_lm.pipeline.reproduce.run import run_cells
from quantized_lm.pipeline.reproduce.store import Stage, Store
from quantized_lm.pipeline.reproduce.view import View
from quantized_lm.pipeline.text_files import read_lines
from tests.tiny import write_text

from .conftest import TinyTable, only_rows, run_plan, tiny_task

ROWS = ("float32", "rtn-8bit", "qat-2bit", "mixed-kl")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What trains or measures, without doing it."""
    made: list[str] = []

    def record(name: str) -> Any:
        def stage(*_: Any, **__: Any) -> None:
            made.append(name)

        return stage

    for module, name in (
        (models, "train"),
        (models, "quantize"),
        (models, "export"),
        (choices, "measure_sensitivity"),
    ):
        monkeypatch.setattr(module, name, record(name))
    monkeypatch.setattr(choices.MeasuredStage, "run", record("allocate"))
    monkeypatch.setattr(models.QuantizeStage, "recipe_of", lambda self, _: self.teacher.recipe)
    monkeypatch.setattr("quantized_lm.pipeline.reproduce.scores.ScoreStage.run", record("score"))
    return made


def transformer(text: Path, size: str = "small", **changes: Any) -> Plan:
    task = only_rows(tiny_task(**changes), *ROWS)
    return make_plan(task, size=size, data=text, architectures=["transformer"])


def test_everything_is_made_once(tiny_table: TinyTable, calls: list[str]) -> None:
    assert tiny_table.failures == {}
    store = tiny_table.store
    assert all(store.is_done(stage) for cell in tiny_table.plan.cells for stage in cell.stages())
    assert not list(store.root.rglob("checkpoint.pt"))
    assert run_plan(tiny_table.plan, store.root) == {}
    assert calls == []


def test_rows_that_tell_most_are_made_first(tiny_table: TinyTable) -> None:
    names = [cell.name for cell in tiny_table.plan.in_order()]
    assert names[:4] == [
        "transformer float32",
        "transformer qat-2bit",
        "transformer rtn-8bit",
        "transformer mixed-manual",
    ]
    assert [cell.row.name for cell in tiny_table.plan.in_order("mixed-*")] == [
        "mixed-manual",
        "mixed-kl",
        "mixed-nas",
        "mixed-even",
    ]
    with pytest.raises(RecipeError, match="no row matches 'none'; rows are float32"):
        tiny_table.plan.in_order("none")


def test_a_second_run_makes_nothing(text: Path, tmp_path: Path, calls: list[str]) -> None:
    run_plan(transformer(text), tmp_path)
    assert [calls.count(name) for name in ("train", "quantize", "score")] == [1, 3, 8]
    assert calls.count("measure_sensitivity") == 1
    calls.clear()
    run_plan(transformer(text), tmp_path)
    assert calls == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"matrix_lr": 0.03}}, {"train": 1, "quantize": 3, "measure_sensitivity": 1}),
        ({"model": {"max_tokens": 56}}, {"train": 1, "quantize": 3, "measure_sensitivity": 1}),
        ({"corpus": {"merge": 0.1}}, {"train": 1, "quantize": 3, "measure_sensitivity": 1}),
        ({"methods": {"distilled": {"kl_weight": 0.5}}}, {"quantize": 2, "export": 2, "score": 4}),
        ({"methods": {"unused": {"steps": 1}}}, {"quantize": 0, "score": 0}),
        ({"sensitivity_windows": 3}, {"measure_sensitivity": 1, "quantize": 1, "score": 2}),
        ({"choices": ["1bit", "8bit"]}, {"measure_sensitivity": 1, "quantize": 1, "export": 1}),
    ],
)
def test_a_changed_recipe_makes_again_what_depends_on_it(
    text: Path, tmp_path: Path, calls: list[str], changes: Any, expected: dict[str, int]
) -> None:
    run_plan(transformer(text), tmp_path)
    calls.clear()
    run_plan(transformer(text, **changes), tmp_path)
    assert {name: calls.count(name) for name in expected} == expected
    assert "train" in expected or "train" not in calls
    calls.clear()
    run_plan(transformer(text), tmp_path)  # what was made before is still there
    assert calls == []


def test_other_text_finds_nothing_old_and_the_same_text_packed_later_does(
    text: Path, tmp_path: Path, calls: list[str]
) -> None:
    for folder, lines in (("again", 300), ("other", 301)):
        (tmp_path / folder).mkdir()
        write_text(tmp_path / folder, lines=lines)
    run_plan(transformer(text), tmp_path)
    calls.clear()
    run_plan(transformer(tmp_path / "again"), tmp_path)
    assert calls == []
    run_plan(transformer(tmp_path / "other"), tmp_path)
    assert (calls.count("train"), calls.count("quantize")) == (1, 3)


def test_the_order_of_format_patterns_counts(text: Path) -> None:
    def key(formats: dict[str, str]) -> str:
        plan = transformer(text)
        cell = next(cell for cell in plan.cells if cell.row.name == "qat-2bit")
        assert isinstance(cell.model, models.ArtifactStage)
        student = cell.model.student
        return replace(student, quantize=replace(student.quantize, formats=formats)).key

    assert key({"a": "2bit", "*": "8bit"}) != key({"*": "8bit", "a": "2bit"})


@pytest.mark.parametrize("stop_at", range(1, 9))
def test_after_a_kill_the_rest_is_made_in_the_same_order(
    text: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    run_plan(transformer(text), tmp_path / "whole")
    whole, run_stage = list(calls), Store.run
    calls.clear()
    left = stop_at

    def killed(store: Store, stage: Stage) -> None:
        nonlocal left
        left -= 1
        if not left:
            store.folder(stage).mkdir(parents=True)
            raise KeyboardInterrupt
        run_stage(store, stage)

    monkeypatch.setattr(Store, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run_plan(transformer(text), tmp_path / "killed")
    monkeypatch.setattr(Store, "run", run_stage)
    run_plan(transformer(text), tmp_path / "killed")
    assert calls == whole


def test_a_failing_stage_fails_its_cells_once_and_no_other(
    text: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def diverges(*_: Any, **__: Any) -> None:
        tried.append(1)
        raise RecipeError("the loss is nan")

    monkeypatch.setattr(choices, "measure_sensitivity", diverges)
    plan = make_plan(
        only_rows(tiny_task(), *ROWS, "mixed-even"),
        size="small",
        data=text,
        architectures=["transformer"],
    )
    output = StringIO()
    failures = run_cells(plan.in_order(), Store(tmp_path), View(Console(file=output, width=200)))
    assert failures == {
        "transformer mixed-kl": "the loss is nan",
        "transformer mixed-even": "the loss is nan",
    }
    assert len(tried) == 1
    assert calls.count("quantize") == 2
    assert "transformer mixed-kl: FAILED: the loss is nan" in output.getvalue()
    assert "transformer qat-2bit: complete" in output.getvalue()
    run_plan(plan, tmp_path)
    assert len(tried) == 2  # a later run tries again


def test_text_is_cut_to_its_first_lines(text: Path, tmp_path: Path, calls: list[str]) -> None:
    plan = transformer(text, size="cut")
    run_plan(plan, tmp_path, only="float32")
    stage = plan.benches["transformer"].teacher.text
    folder = stage.folder(Store(tmp_path).folder)
    whole = list(read_lines(text / "tiny.txt.gz"))
    assert list(read_lines(folder / "tiny.txt.gz")) == whole[:150]
    assert stage.key != transformer(text).benches["transformer"].teacher.text.key
    assert calls.count("train") == 1


@pytest.mark.usefixtures("calls")
def test_the_view_counts_what_is_cached(text: Path, tmp_path: Path) -> None:
    run_plan(transformer(text), tmp_path, only="float32")
    output = StringIO()
    plan = transformer(text)
    console = Console(file=output, width=200)
    times = iter(range(0, 10_000_000, 3725))
    run_cells(plan.in_order(), Store(tmp_path), View(console, clock=lambda: next(times)))
    lines = output.getvalue()
    assert "4/4" in lines
    assert "4/8" in lines
    assert "2:04:10 14 stages to run, the rest is cached" in lines
    assert "stage 14 of 14, transformer mixed-kl: score test" in lines
