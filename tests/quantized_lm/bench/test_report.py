"""Claims about the rows of a report, its tables and where it was made."""

from __future__ import annotations

import io
import platform
from pathlib import Path

import pytest
from rich.console import Console

from quantized_lm import machine
from quantized_lm.bench.gemms import GemmTime, summarize
from quantized_lm.bench.lists import ListShape
from quantized_lm.bench.memory import Memory
from quantized_lm.bench.peaks import PeakRate
from quantized_lm.bench.peers.protocol import Description
from quantized_lm.bench.report import ListSet, Report, SystemRow, describe_machine, rows_of
from quantized_lm.bench.rounds import SystemTimes
from quantized_lm.bench.served import Served
from quantized_lm.bench.systems import OWN, SystemSpec
from quantized_lm.bench.tables import print_report

BROKEN = SystemTimes(
    SystemSpec("theirs float32", "transformers", "float32", is_float=True), failure="not installed"
)
FLOAT = SystemTimes(
    SystemSpec("ours float32", OWN, "float32", is_float=True),
    None,
    Description("1", 400, "torch"),
    (8.0, 10.0, 12.0),
    (),
    [[-10.0, -20.0]],
)
PACKED = SystemTimes(
    SystemSpec("ours 4bit", OWN, "4bit", "cpu"),
    None,
    Description("1", 50, "cpu/best"),
    (1.0, 2.0, 3.0),
    (2.0, 4.0),
    [[-11.0, -20.0]],
    (100.0, 100.0, None),
)
SINGLE = SystemTimes(
    SystemSpec("ours 4bit", OWN, "4bit", "cpu", threads=1),
    None,
    Description("1", 50, "cpu/best"),
    (4.0,),
    (),
    [[-11.0, -20.0]],
    (50.0,),
)


def rows() -> tuple[SystemRow, ...]:
    return rows_of([BROKEN, FLOAT, PACKED, SINGLE], {"4bit": [[-11.0, -20.0]]}, operations=1e8)


def test_all_compare_with_the_first_float32_that_ran() -> None:
    broken, base, packed = rows()
    assert (broken.failure, broken.times_float32) == ("not installed", None)
    assert base.times_float32 == 1.0
    assert packed.times_float32 == 5.0
    assert packed.max_difference == pytest.approx(0.1)
    assert packed.same_weights_difference == 0.0
    assert base.same_weights_difference is None
    assert packed.one_thread_ms == 4.0
    assert packed.over_one_thread == 2.0
    assert base.over_one_thread is None
    assert (base.peak_share, packed.peak_share, packed.one_thread_peak_share) == (None, 0.75, 0.5)
    (row,) = rows_of([PACKED], {})
    assert row.peak_share is None


def test_without_float32_there_is_no_comparison() -> None:
    (row,) = rows_of([PACKED], {})
    assert (row.times_float32, row.max_difference, row.ranking_noise) == (None, None, None)


def whole_report() -> Report:
    timings = (
        GemmTime("ours 4bit", 1, 64, 64, 1e-6, 0.1),
        GemmTime("ours 4bit", 1, 64, 32, 1e-6, 0),
    )
    return Report(
        machine="a machine",
        threads=2,
        method=("how it was timed",),
        peaks=(PeakRate("int8 dot", "op", {1: 1e12, 2: 2e12}),),
        gemms=timings,
        gemm_summaries=tuple(summarize(timings)),
        list_sets=(ListSet("s", "GPT-2 s", ListShape(200, 60, 220), (2.5, 4.0), rows()),),
        memory={"en-small": Memory(5 << 20, 2, 6 << 20, 7 << 20, 9 << 20)},
        served={"en-small": Served(100, 5, 4, 3.5, 0.5, 1, 2, 12, 60)},
        remarks=("something was odd",),
    )


def test_tables_show_everything_and_hide_no_failure() -> None:
    output = io.StringIO()
    print_report(whole_report(), Console(file=output, width=132))
    text = output.getvalue()
    for part in (
        "a machine",
        "2000",  # billions of operations
        "64 x 32",
        "ratio 2.5 to 4.0",
        "1.5-2.5",  # quartiles
        "5.00",  # times float32
        "2.0-4.0",  # fresh processes
        "75",  # of the products' limit, in percent
        "theirs float32 did not run: not installed",
        "how it was timed",
        "a served request of en-small",
        "70.0",  # of the wall time, in percent
        "nodes not run: 12 of 60",
        "something was odd",
    ):
        assert part in text, part


def test_tables_do_without_what_was_not_measured() -> None:
    output = io.StringIO()
    empty = Report("a machine", 2, (), (), (), (), (), {}, {}, ())
    print_report(empty, Console(file=output, width=132))
    assert "a served request" not in output.getvalue()
    served = {"en-small": Served(100, 5, 4, 3.5, 0.5, 1, 2, None, 60)}
    print_report(
        Report("a machine", 2, (), (), (), (), (), {}, served, ()), Console(file=output, width=132)
    )
    assert "not said" in output.getvalue()


def test_memory_is_told_apart() -> None:
    memory = whole_report().memory["en-small"]
    assert memory.beyond_packed_bytes == 2 << 20
    assert memory.activation_bytes == 3 << 20


def test_the_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in describe_machine()
    monkeypatch.setattr(platform, "machine", lambda: "some-cpu")
    monkeypatch.setattr(machine, "_CPU_INFORMATION", Path("/nonexistent/cpuinfo"))
    assert describe_machine().startswith("some-cpu, Python")
