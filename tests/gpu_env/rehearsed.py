"""In the environment with Triton: the benchmark of a GPU, all of it, on a CPU and tiny.

Run by tests/gpu with TRITON_INTERPRET=1: `pytest tests/gpu_env/rehearsed.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from triton.runtime.errors import OutOfResources
from typer.testing import CliRunner

from quantized_lm.bench.gpu import REPORT, STAGES, rehearsal, run, tuned
from quantized_lm.bench.gpu_clock import Clock
from quantized_lm.bench.gpu_products import TRIED_TILES, _best_tile, _fitting, _timed
from quantized_lm.bench.gpu_report import GpuReport
from quantized_lm.errors import BackendError, DataError
from quantized_lm.ops.device_args import Codes
from quantized_lm.ops.device_layout import DeviceWeight
from quantized_lm.ops.tiles import TABLE, Tile, read_tiles
from quantized_lm.ops.triton.launch import Kernels
from quantized_lm.records import read_record
from service.cli import build_cli

T = TypeVar("T")


def track(items: Sequence[T], _: str) -> Iterable[T]:
    return items


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `make bench-gpu BENCH=--rehearse` leaves behind and prints."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["bench", "--gpu", "--tune", "--rehearse", "--output", str(folder)]
    done = CliRunner().invoke(build_cli(), arguments)
    assert done.exit_code == 0, done.output
    return folder, done.stdout


def report_of(folder: Path) -> GpuReport:
    return read_record(GpuReport, folder / REPORT, what="report")


def test_every_stage_runs_and_is_kept(rehearsed: tuple[Path, str]) -> None:
    folder, printed = rehearsed
    report = report_of(folder)
    assert json.loads(printed.splitlines()[-1]) == json.loads((folder / REPORT).read_bytes())
    assert "times mean nothing" in printed
    assert report.is_rehearsal
    assert report.comparisons > 5
    assert {one.what for one in (*report.peaks, *report.times)} == {
        "peak", "product", "output", "attention",
    }  # fmt: skip
    assert not [one for one in (*report.peaks, *report.times) if one.failure is not None]
    assert not report.remarks
    assert read_tiles(report.device, (folder / TABLE).read_text()).tiles


def test_lists_are_scored_as_on_the_cpu_and_the_same_in_any_company(
    rehearsed: tuple[Path, str],
) -> None:
    report = report_of(rehearsed[0])
    differences = [one.difference for one in report.lists if one.difference is not None]
    assert len(differences) == 2
    assert max(differences) < 1e-3
    assert [(one.residencies, one.batches) for one in report.same] == [(True, True)]
    ours = [one for one in report.lists if one.system.startswith("ours")]
    assert {one.batch for one in ours} == {0, 12}
    assert all(one.device_ms and one.median_ms for one in ours)


def test_the_service_is_asked_over_loopback_and_timed_by_stage(
    rehearsed: tuple[Path, str],
) -> None:
    service = report_of(rehearsed[0]).service
    assert service is not None
    assert (service.backend, service.residency) == ("triton/interpreter", "expanded")
    assert [(one.rate, one.answered, one.refused) for one in service.times] == [
        (0.0, 2, 0),
        (4.0, 2, 0),
    ]
    for one in service.times:
        by_stage = {stage.stage: stage.median_ms for stage in one.stages}
        assert list(by_stage) == [
            "queue", "tokenize", "forward", "combine", "other", "http", "wall",
        ]  # fmt: skip
        assert 0 < by_stage["forward"] < by_stage["wall"]
    assert service.load_s > 0


def test_what_was_promised_stands_beside_what_was_found(rehearsed: tuple[Path, str]) -> None:
    folder, printed = rehearsed
    targets = report_of(folder).targets
    assert len(targets) == 27
    assert all(one.what in printed for one in targets)
    same = [one for one in targets if "differ in a bit" in one.what]
    assert [(one.found, one.holds) for one in same] == [(0.0, True), (0.0, True)]
    assert not any(one.holds for one in targets if one.found is None)


def test_one_stage_keeps_what_the_others_found(rehearsed: tuple[Path, str]) -> None:
    folder, _ = rehearsed
    before = report_of(folder)
    again = run(replace(rehearsal(folder), stages=("peaks",)), track)
    assert again.service == before.service
    assert again.lists == before.lists
    assert again.peaks != before.peaks
    with pytest.raises(DataError, match=", ".join(STAGES)):
        run(replace(rehearsal(folder), stages=("peak",)), track)


def test_tiles_are_looked_for_among_many() -> None:
    assert tuned(rehearsal(Path())).products.tiles == TRIED_TILES
    assert {tile.nodes for tile in _fitting(TRIED_TILES, 1)} == {16}
    assert {tile.nodes for tile in _fitting(TRIED_TILES, 4000)} == {32, 64, 128}


def test_a_tile_that_does_not_fit_is_passed_over() -> None:
    small, large = Tile(64, 16, 4, 2), Tile(128, 128, 8, 4)

    def call(tile: Tile) -> None:
        if tile == large:
            raise OutOfResources(300_000, 232_448, "shared memory")

    clock = Clock(torch.device("cpu"), 1)
    assert _best_tile(call, (large, small), clock) == small
    assert _best_tile(call, (large,), clock) is None
    timed = _timed("product", "ours", (1, 2, 3), lambda: call(large), 1.0, clock)
    assert timed.failure is not None
    assert "shared memory" in timed.failure


def test_nothing_is_timed_where_a_kernel_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Kernels.matmul

    def wrong(self: Kernels, weight: DeviceWeight, x: Codes, num: int, y: Any, *_: Any) -> None:
        true(self, weight, x, num, y)
        y[-1, -1] += 1

    monkeypatch.setattr(Kernels, "matmul", wrong)
    with pytest.raises(BackendError, match=r"M 2, packed 2: 1 of 140 numbers differ"):
        run(rehearsal(tmp_path), track)
    assert not (tmp_path / REPORT).exists()
