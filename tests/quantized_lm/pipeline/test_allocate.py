from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantized_lm.errors import DataError, InputError
from quantized_lm.pipeline.allocate import (
    allocate,
    allocate_costs,
    manual_allocation,
    read_allocation,
)
from quantized_lm.pipeline.measured import Estimate
from quantized_lm.pipeline.sensitivity import SensitivityReport
from quantized_lm.pipeline.sizes import SizeTable
from quantized_lm.records import write_record

Rows = dict[str, dict[str, float]]


def sizes_of(packed: dict[str, dict[str, int]], fixed_bytes: int = 10) -> SizeTable:
    return SizeTable(float_bytes=1000, fixed_bytes=fixed_bytes, packed=packed)


def exhaustive(costs: Rows, sizes: SizeTable, budget_bytes: int) -> tuple[float, int]:
    """Lowest cost under the budget, and the least bytes that reach it."""
    found = []
    for picks in itertools.product(*(row for row in sizes.packed.values())):
        formats = dict(zip(sizes.packed, picks, strict=True))
        size = sizes.total(formats)
        if size <= budget_bytes:
            cost = 0.0
            for name, choice in formats.items():
                cost += costs[name][choice]
            found.append((cost, size))
    return min(found)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Rows, SizeTable, int]:
    """A few tensors; small whole numbers, so that ties of size and cost abound."""
    number = st.integers(0, 6)
    costs: Rows = {}
    packed: dict[str, dict[str, int]] = {}
    for index in range(draw(st.integers(1, 5))):
        choices = [f"c{k}" for k in range(draw(st.integers(1, 4)))]
        packed[f"t{index}"] = {choice: draw(st.integers(1, 9)) for choice in choices}
        costs[f"t{index}"] = {choice: float(draw(number)) for choice in choices}
    sizes = sizes_of(packed)
    least = 10 + sum(min(row.values()) for row in packed.values())
    return costs, sizes, least + draw(st.integers(0, 25))


@given(problems())
def test_the_allocation_is_that_of_exhaustive_search(problem: tuple[Rows, SizeTable, int]) -> None:
    costs, sizes, budget_bytes = problem
    found = allocate_costs(costs, sizes, budget_bytes=budget_bytes, metric="kl")
    assert (found.cost, found.size_bytes) == exhaustive(costs, sizes, budget_bytes)
    assert found.cost == sum(costs[name][choice] for name, choice in found.formats.items())
    assert found.size_bytes == sizes.total(found.formats) <= budget_bytes
    assert list(found.formats) == list(sizes.packed)


def test_the_best_allocation_need_not_be_the_greedy_one() -> None:
    sizes = sizes_of(
        {"a": {"low": 1, "high": 6}, "b": {"low": 1, "high": 5}, "c": {"low": 1, "high": 5}}
    )
    costs = {
        "a": {"low": 12.0, "high": 0.0},  # the most saved per byte
        "b": {"low": 9.0, "high": 0.0},
        "c": {"low": 9.0, "high": 0.0},
    }
    found = allocate_costs(costs, sizes, budget_bytes=10 + 11, metric="kl")
    assert found.formats == {"a": "low", "b": "high", "c": "high"}


def test_of_equal_costs_the_smaller_wins_and_then_the_earlier_tensors() -> None:
    row = {"small": 1, "large": 2}
    sizes = sizes_of({"a": row, "b": row})
    free = {"small": 0.0, "large": 0.0}
    assert allocate_costs({"a": free, "b": free}, sizes, budget_bytes=100, metric="kl").formats == {
        "a": "small",
        "b": "small",
    }
    steep = {"small": 1.0, "large": 0.0}
    assert allocate_costs(
        {"a": steep, "b": steep}, sizes, budget_bytes=13, metric="kl"
    ).formats == {"a": "small", "b": "large"}


def test_an_impossible_budget_names_the_least_and_what_binds() -> None:
    sizes = sizes_of({"a": {"1bit": 30, "2bit": 60}, "embedding": {"1bit": 60, "2bit": 120}})
    message = (
        r"budget is 99 bytes; the smallest reachable size is 100 \(10\.0x\), of which 'embedding' "
        r"alone takes 60 at 1bit"
    )
    with pytest.raises(InputError, match=message):
        allocate_costs({}, sizes, budget_bytes=99, metric="kl")
    with pytest.raises(InputError, match=message):
        manual_allocation(sizes, budget_bytes=99)


def test_a_negative_cost_counts_as_none() -> None:
    sizes = sizes_of({"a": {"1bit": 1, "2bit": 2}, "b": {"1bit": 1, "2bit": 2}})

    def row(low: float, high: float) -> dict[str, Estimate]:
        return {"1bit": Estimate(low, 0.0), "2bit": Estimate(high, 0.0)}

    report = SensitivityReport(
        key="",
        recipe="tiny",
        metric="hessian",
        windows=1,
        tokens=1,
        sizes=sizes,
        costs={"a": row(-9.0, -1.0), "b": row(1.0, 0.5)},
    )
    found = allocate(report, budget_bytes=100)
    assert found.formats == {"a": "1bit", "b": "2bit"}
    assert found.cost == 0.5


def test_many_tensors_take_no_time() -> None:
    rng = np.random.default_rng(0)
    packed, costs = {}, {}
    for index in range(97):
        scale = int(rng.integers(1000, 1_000_000))
        packed[f"t{index}"] = {f"c{b}": int(scale * b) for b in (1, 2, 4, 8)}
        costs[f"t{index}"] = {f"c{b}": float(scale * rng.random() * 4.0**-b) for b in (1, 2, 4, 8)}
    total = sum(row["c2"] for row in packed.values())
    found = allocate_costs(costs, sizes_of(packed), budget_bytes=total, metric="kl")
    assert 0.999 * total < found.size_bytes <= total


def test_by_hand_the_outside_of_the_model_gets_more_than_its_middle() -> None:
    row = {"1bit": 10, "2bit": 20, "4bit": 40}
    names = ("embedding.weight", *(f"blocks.{k}.up.weight" for k in range(4)))
    sizes = sizes_of(dict.fromkeys(names, row), fixed_bytes=0)

    def bytes_by_name(budget_bytes: int) -> list[int]:
        formats = manual_allocation(sizes, budget_bytes=budget_bytes).formats
        return [row[formats[name]] for name in names]

    assert bytes_by_name(50) == [10, 10, 10, 10, 10]
    assert bytes_by_name(79) == [20, 20, 10, 10, 10]  # no room for all the outside: in its order
    assert bytes_by_name(80) == [20, 20, 10, 10, 20]
    assert bytes_by_name(119) == [40, 20, 20, 10, 20]
    assert bytes_by_name(160) == [40, 40, 20, 20, 40]
    assert bytes_by_name(1000) == [40] * 5


def test_by_hand_two_layers_have_no_middle() -> None:
    row = {"1bit": 10, "2bit": 20, "4bit": 40}
    names = ("embedding.weight", "layers.0.input.i.weight", "layers.1.input.i.weight")
    sizes = sizes_of(dict.fromkeys(names, row), fixed_bytes=0)
    formats = manual_allocation(sizes, budget_bytes=80).formats
    assert list(formats.values()) == ["4bit", "2bit", "2bit"]


def test_an_allocation_survives_a_file(tmp_path: Path) -> None:
    sizes = sizes_of({"a": {"1bit": 30, "2bit": 60}})
    found = manual_allocation(sizes, budget_bytes=80)
    path = tmp_path / "deep" / "allocation.json"
    write_record(path, found)
    assert read_allocation(path) == found
    assert found.compression == pytest.approx(1000 / 70)
    path.write_text('{"metric": "kl"}')
    with pytest.raises(DataError, match=r"allocation\.json: field 'budget_bytes' is missing"):
        read_allocation(path)
    with pytest.raises(DataError, match="no allocation can be read"):
        read_allocation(tmp_path / "none.json")
