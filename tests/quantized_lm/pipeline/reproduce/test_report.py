from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from quantized_lm.artifact import load_artifact
from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.evaluate import held_out_text, line_nats
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.reproduce import choices, plots
from quantized_lm.pipeline.reproduce.models import ArtifactStage
from quantized_lm.pipeline.reproduce.plan import Cell, make_plan
from quantized_lm.pipeline.reproduce.report import Report, make_report
from quantized_lm.pipeline.reproduce.results import (
    CellResult,
    Comparison,
    Numbers,
    TargetResult,
    is_reached,
)
from quantized_lm.pipeline.reproduce.store import Store
from quantized_lm.pipeline.reproduce.task import Target
from quantized_lm.pipeline.reproduce.writing import write_report

from .conftest import TinyTable, only_rows, run_plan, tiny_task

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def report(tiny_table: TinyTable) -> Report:
    return make_report(tiny_table.plan, tiny_table.store, now=NOW)


def numbers_of(report: Report, row: str) -> Numbers:
    (cell,) = [cell for cell in report.cells if cell.row == row]
    assert cell.numbers is not None
    return cell.numbers


def cell_of(table: TinyTable, row: str) -> Cell:
    (cell,) = [cell for cell in table.plan.cells if cell.row.name == row]
    return cell


def test_every_cell_is_measured_and_says_what_it_was_made_in(
    report: Report, tiny_table: TinyTable
) -> None:
    assert [cell.status for cell in report.cells] == ["measured"] * len(tiny_table.plan.cells)
    for cell in report.cells:
        assert all((tiny_table.store.root / name / "stage.json").exists() for name in cell.stages)
    assert len({numbers_of(report, cell.row).recipe_sha256 for cell in report.cells}) == 12


@pytest.mark.parametrize("row", ["qat-2bit", "mixed-kl", "mixed-nas"])
@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_numbers_of_a_packed_model_are_those_of_its_artifact(
    report: Report, tiny_table: TinyTable, row: str, split: str
) -> None:
    model, folder_of = cell_of(tiny_table, row).model, tiny_table.store.folder
    assert isinstance(model, ArtifactStage)
    recipe, run = model.recipe_of(folder_of), folder_of(model.float_stage)
    loaded = load_artifact(model.model_folder(folder_of))
    text = held_out_text(recipe, open_corpus(recipe.corpus, run / "corpus"), split)
    nats = line_nats(loaded.model, text, "")
    teacher = line_nats(load_teacher(recipe, run), text, "")
    numbers, tokens = numbers_of(report, row), text.num_tokens.sum()
    measured = {"dev": numbers.dev, "test": numbers.test}[split]
    assert measured.token_perplexity == pytest.approx(math.exp(nats.sum() / tokens), rel=1e-6)
    assert measured.nll_difference == pytest.approx((nats - teacher).sum() / tokens, abs=1e-6)
    assert measured.nll_difference_low < measured.nll_difference < measured.nll_difference_high
    assert measured.backend == loaded.backend
    size = (model.model_folder(folder_of) / "weights.safetensors").stat().st_size
    assert numbers.size_bytes == size
    assert numbers.compression == numbers_of(report, "float32").size_bytes / size
    parameters = loaded.manifest.parameters
    assert numbers.decoded_bits == loaded.manifest.packed_bits_per_weight
    assert numbers.bits_per_weight == pytest.approx(8 * size / parameters)


def test_the_float_model_is_measured_against_itself(report: Report) -> None:
    numbers = numbers_of(report, "float32")
    assert (numbers.compression, numbers.test.nll_difference) == (1, 0)
    assert (numbers.test.nll_difference_low, numbers.test.nll_difference_high) == (0, 0)
    assert numbers_of(report, "small").compression >= 4
    assert numbers_of(report, "smaller").compression >= 8
    assert numbers_of(report, "mixed-kl").compression >= 8.5  # sizes after training are guessed


def test_a_rated_model_has_a_rate_for_every_matrix(tiny_table: TinyTable) -> None:
    recipe = cell_of(tiny_table, "rated").model.recipe_of(tiny_table.store.folder)
    rates = [fields["bits"] for fields in recipe.quantize.overrides.values()]
    assert len(rates) == len(recipe.quantize.formats) > 4
    assert min(rates) < max(rates)
    priced = cell_of(tiny_table, "priced").model.recipe_of(tiny_table.store.folder)
    assert [fields["bits"] for fields in priced.quantize.overrides.values()] != rates
    even = cell_of(tiny_table, "rated-even").model.recipe_of(tiny_table.store.folder)
    assert even.quantize.overrides == {}


def test_mixed_rows_stand_beside_uniform_ones_of_their_method(report: Report) -> None:
    pairs = [(one.mixed, one.uniform) for one in report.comparisons]
    assert ("mixed-kl", "qat-2bit") in pairs
    assert ("mixed-even", "rtn-8bit") in pairs
    assert ("mixed-kl", "rtn-8bit") not in pairs
    (one,) = [one for one in report.comparisons if one.mixed == "mixed-kl"]
    difference = numbers_of(report, "mixed-kl").test.nll - numbers_of(report, "qat-2bit").test.nll
    assert one.nll_difference == pytest.approx(difference)
    assert one.low < one.nll_difference < one.high


def test_the_learning_curve_is_that_of_training(report: Report, tiny_table: TinyTable) -> None:
    (curve,) = report.learning
    folder = tiny_table.store.folder(cell_of(tiny_table, "float32").model)
    lines = (folder / "train" / "history.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert curve.tokens == tuple(row["tokens"] for row in rows)
    assert curve.perplexity[-1] == pytest.approx(math.exp(rows[-1]["dev_nll"]), abs=0.01)
    assert curve.tokens[0] < curve.tokens[-1]


def test_a_target_takes_the_best_on_dev_among_what_is_small_enough(report: Report) -> None:
    by_target = {
        result.target.compression: result
        for result in report.targets
        if result.architecture == "transformer"
    }
    packed = [cell for cell in report.cells if cell.method]
    best = min(packed, key=lambda cell: cell.numbers.dev.nll if cell.numbers else math.inf)
    assert by_target[2.0].row == best.row
    assert by_target[2.0].passed
    assert (by_target[100.0].row, by_target[100.0].passed) == ("", None)
    assert report.reached == (None, None)  # the other architecture is not in the plan


def test_allocations_and_sensitivities_are_those_of_the_stages(report: Report) -> None:
    metrics = sorted(one.metric for one in report.allocations)
    assert metrics == ["kl", "kl", "kl", "kl at rates", "manual", "nas"]
    rated, priced = [one for one in report.allocations if one.has_rates]
    assert 0.7 <= min(rated.bits.values()) < max(rated.bits.values()) <= 3.5
    assert 0.2 <= min(priced.bits.values()) < max(priced.bits.values()) <= 3.5
    for one in report.allocations:
        assert one.compression >= 8
        if one.has_rates:
            continue
        assert set(one.formats.values()) <= {"1bit", "2bit", "8bit"}
        assert {one.formats[name]: bits for name, bits in one.bits.items()}.items() <= {
            ("1bit", 1.0),
            ("2bit", 2.0),
            ("8bit", 8.0),
        }
    assert [one.metric for one in report.sensitivities] == ["kl", "kl at rates"]
    for costs in report.sensitivities:
        assert set(costs.costs) == set(report.allocations[0].formats)


def test_the_files_hold_the_report(report: Report, tmp_path: Path) -> None:
    notes: list[str] = []
    write_report(report, tmp_path, notes.append)
    assert notes == []
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["origin"]["made_at"] == "2026-11-20T12:00:00+00:00"
    assert saved["origin"]["stage_seconds"] > 0
    page = (tmp_path / "report.md").read_text()
    for cell in saved["cells"]:
        numbers = cell["numbers"]
        row = next(line for line in page.splitlines() if line.startswith(f"| {cell['label']} |"))
        assert f"{numbers['size_bytes']:,}" in row
        assert f"{numbers['test']['token_perplexity']:.2f}" in row
        assert f"{numbers['test']['nll_difference']:+.4f}" in row
    assert "**reached** by `" in page
    for name in ("size-and-perplexity", "learning", "bits", "sensitivity"):
        assert f"({name}.png)" in page
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_so(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    notes: list[str] = []
    write_report(report, tmp_path, notes.append)
    assert notes == [
        "no pictures: matplotlib is not installed; pip install 'secondpass[reproduce]'"
    ]
    assert "![" not in (tmp_path / "report.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_cells_that_failed_or_were_not_run_say_so(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(
        only_rows(tiny_task(), "float32", "mixed-kl", "rtn-8bit"),
        size="small",
        data=text,
        architectures=["lstm"],
    )

    def diverges(*_: object, **__: object) -> None:
        raise RecipeError("diverged | at step 3")

    monkeypatch.setattr(choices, "measure_sensitivity", diverges)
    run_plan(plan, tmp_path, only="mixed-*")
    report = make_report(plan, Store(tmp_path), now=NOW)
    status = {cell.row: (cell.status, cell.reason) for cell in report.cells}
    assert status == {
        "float32": ("measured", ""),  # its scores are what the others are compared with
        "rtn-8bit": ("not run", ""),
        "mixed-kl": ("failed", "diverged | at step 3"),
    }
    write_report(report, tmp_path / "report", print)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| by KL | failed: diverged / at step 3 |" in page
    assert "| 8 bits | not run |" in page
    assert "No pair of the same method is measured yet." in page


def test_an_empty_store_makes_an_empty_report(tiny_table: TinyTable, tmp_path: Path) -> None:
    report = make_report(tiny_table.plan, Store(tmp_path), now=NOW)
    assert {cell.status for cell in report.cells} == {"not run"}
    write_report(report, tmp_path / "report", print)
    assert not list((tmp_path / "report").glob("*.png"))


@pytest.mark.parametrize(
    ("low", "high", "mixed_bytes", "verdict", "wins"),
    [
        (-0.2, -0.1, 100, "better", True),
        (-0.2, -0.1, 101, "better", True),
        (-0.2, -0.1, 120, "better", None),  # with more bytes
        (0.1, 0.2, 120, "worse", False),
        (0.1, 0.2, 100, "worse", False),
        (0.1, 0.2, 80, "worse", None),  # with fewer bytes
        (-0.1, 0.1, 100, "no significant difference", None),
    ],
)
def test_mixed_precision_wins_or_loses_at_equal_bytes_alone(
    low: float, high: float, mixed_bytes: int, verdict: str, wins: bool | None
) -> None:
    one = Comparison("lstm", "m", mixed_bytes, "u", 100, (low + high) / 2, low, high)
    assert (one.verdict, one.wins) == (verdict, wins)


@pytest.mark.parametrize(
    ("everywhere", "passed", "reached"),
    [
        (True, (True, True), True),
        (True, (True, False), False),
        (True, (True, None), None),
        (True, (False, None), False),
        (False, (True, False), True),
        (False, (True, None), True),
        (False, (False, None), None),
        (False, (False, False), False),
    ],
)
def test_a_target_is_reached_everywhere_or_somewhere(
    everywhere: bool, passed: tuple[bool | None, ...], reached: bool | None
) -> None:
    target = Target(16, 1.01, everywhere=everywhere)
    results = [TargetResult(target, str(place), "", None, one) for place, one in enumerate(passed)]
    assert is_reached(target, results) is reached


def test_labels_do_not_cover_each_other(report: Report, tmp_path: Path) -> None:
    def at(cell: CellResult, size_bytes: int) -> CellResult:
        assert cell.numbers is not None
        return replace(cell, numbers=replace(cell.numbers, size_bytes=size_bytes))

    crowded = replace(report, cells=tuple(at(cell, 1000) for cell in report.cells))
    assert plots.draw(crowded, tmp_path)[0] == "size-and-perplexity.png"
    places = np.array([[0.5, 0.5]] * 6)
    assert len({height for _, height in plots.label_places(places, ["name"] * 6)}) == 6
