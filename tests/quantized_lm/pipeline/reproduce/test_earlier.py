"""Reports written over earlier ones: what only those have is kept, what no longer fits is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

import quantized_lm
from quantized_lm.errors import DataError
from quantized_lm.pipeline.reproduce.earlier import read_earlier, rows_left_out, with_earlier
from quantized_lm.pipeline.reproduce.markdown import render
from quantized_lm.pipeline.reproduce.report import Report, make_report, with_cells
from quantized_lm.pipeline.reproduce.results import MEASURED, NOT_RUN, CellResult
from quantized_lm.pipeline.reproduce.task import LatticeSet
from quantized_lm.pipeline.reproduce.writing import write_report
from quantized_lm.records import read_record, write_record

from .conftest import TinyTable

REPORTS = Path(quantized_lm.__file__).parent / "reports"
BEFORE = datetime(2026, 11, 20, tzinfo=timezone.utc)
NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def earlier(tiny_table: TinyTable, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """All rows, through its file."""
    folder = tmp_path_factory.mktemp("earlier")
    write_report(make_report(tiny_table.plan, tiny_table.store, now=BEFORE), folder, lambda _: None)
    found = read_earlier(folder, tiny_table.plan)
    assert found
    return found


def only(table: TinyTable, *rows: str) -> Report:
    """A report of a run that made nothing but some rows."""
    whole = make_report(table.plan, table.store, now=NOW)
    cells = [
        cell if cell.row in rows else replace(cell, status=NOT_RUN, numbers=None)
        for cell in whole.cells
    ]
    some = with_cells(whole, cells, table.plan.task)
    return replace(some, comparisons=(), allocations=(), sensitivities=(), learning=())


def measured(report: Report) -> set[str]:
    return {cell.row for cell in report.cells if cell.status == MEASURED}


def changed(report: Report, row: str, **changes: object) -> Report:
    def change(cell: CellResult) -> CellResult:
        return replace(cell, **changes) if cell.row == row else cell  # type: ignore[arg-type]

    return replace(report, cells=tuple(map(change, report.cells)))


@pytest.mark.parametrize(
    "path", sorted(REPORTS.glob("*/report.json")), ids=lambda path: path.parent.name
)
def test_reports_that_ship_can_be_gone_on_with(path: Path) -> None:
    found = read_record(Report, path, what="report")
    rows = [cell for cell in found.cells if cell.status == MEASURED]
    assert rows
    assert all(cell.measured_in for cell in rows)


def test_a_report_comes_back_from_its_file(earlier: Report, tiny_table: TinyTable) -> None:
    assert earlier == make_report(tiny_table.plan, tiny_table.store, now=BEFORE)


@pytest.mark.parametrize("rows", [("float32", "rtn-8bit"), ()])
def test_rows_of_an_earlier_report_are_kept(
    rows: tuple[str, ...], earlier: Report, tiny_table: TinyTable
) -> None:
    now = only(tiny_table, *rows)
    joined = with_earlier(now, earlier, tiny_table.plan)
    assert measured(joined) == measured(earlier)
    assert [cell.numbers for cell in joined.cells] == [cell.numbers for cell in earlier.cells]
    made = {cell.row: cell.made for cell in joined.cells}
    assert {row for row in made if not made[row]} == set(rows)
    assert set(made.values()) - {""} == {f"{BEFORE.isoformat()}; {earlier.origin.machine}"}
    assert (joined.targets, joined.reached) == (earlier.targets, earlier.reached)
    assert joined.comparisons == earlier.comparisons
    for findings in ("allocations", "sensitivities", "learning"):
        assert getattr(joined, findings) == getattr(earlier, findings), findings
    assert joined.origin == now.origin
    page = render(joined, [])
    assert "Made earlier (2026-11-20T00:00:00+00:00; " in page
    assert ("transformer `rtn-8bit`" in page) == (not rows)


def test_what_is_measured_now_stands(earlier: Report, tiny_table: TinyTable) -> None:
    now = make_report(tiny_table.plan, tiny_table.store, now=NOW)
    assert with_earlier(now, earlier, tiny_table.plan) == now


def test_rows_taken_over_twice_keep_their_date(earlier: Report, tiny_table: TinyTable) -> None:
    once = with_earlier(only(tiny_table, "float32"), earlier, tiny_table.plan)
    once = replace(once, origin=replace(once.origin, made_at="2026-11-21"))
    twice = with_earlier(only(tiny_table, "float32"), once, tiny_table.plan)
    made = {cell.row: cell.made for cell in twice.cells}
    assert made["qat-2bit"].startswith("2026-11-20T")


@pytest.mark.parametrize("field", ["stages", "measured_in"])
def test_rows_of_other_text_recipes_or_lists_are_not_kept(
    field: str, earlier: Report, tiny_table: TinyTable
) -> None:
    other = changed(earlier, "mixed-kl", **{field: ("score-0",)})
    joined = with_earlier(only(tiny_table, "float32"), other, tiny_table.plan)
    assert measured(joined) == measured(earlier) - {"mixed-kl"}
    is_whole = field == "measured_in"  # then its allocation is that of the plan still
    assert bool(joined.allocations) == is_whole


def test_rows_beside_another_training_of_the_float_model_are_not_kept(
    earlier: Report, tiny_table: TinyTable
) -> None:
    (numbers,) = [cell.numbers for cell in earlier.cells if cell.row == "float32"]
    assert numbers
    nudged = replace(numbers, dev=replace(numbers.dev, nll=numbers.dev.nll + 1e-12))
    other = changed(earlier, "float32", numbers=nudged)
    now = only(tiny_table, "float32", "qat-2bit")
    assert with_earlier(now, other, tiny_table.plan) == now
    left_out = rows_left_out(now, other)
    assert len(left_out) == len(measured(earlier)) - 2
    assert "transformer mixed-kl" in left_out


def test_an_earlier_report_of_another_table_is_none(
    earlier: Report, tiny_table: TinyTable, tmp_path: Path
) -> None:
    assert read_earlier(tmp_path, tiny_table.plan) is None
    write_report(replace(earlier, size="cpu"), tmp_path, lambda _: None)
    assert read_earlier(tmp_path, tiny_table.plan) is None


def test_an_earlier_report_that_cannot_be_read_or_says_more_is_refused(
    earlier: Report, tiny_table: TinyTable, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(DataError, match=f"no report of an earlier run.*; delete {tmp_path} to"):
        read_earlier(tmp_path, tiny_table.plan)
    lattices = (LatticeSet("some", "Some lattices", "some", lm_scale=1.0),)
    write_record(tmp_path / "report.json", replace(earlier, lattices=lattices))
    with pytest.raises(DataError, match="tells of lists or lattices too; give --speech"):
        read_earlier(tmp_path, tiny_table.plan)
