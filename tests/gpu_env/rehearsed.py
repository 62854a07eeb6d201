"""In the environment with Triton: the benchmark of a GPU, all of it, on a CPU and tiny.

Too slow for every run; by hand, with TRITON_INTERPRET=1: `pytest tests/gpu_env/rehearsed.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from rich.console import Console
from torch import Tensor

from quantized_lm.bench.gpu import REPORT, rehearsal, run, tuned
from quantized_lm.bench.gpu_products import TRIED_TILES
from quantized_lm.bench.gpu_tables import print_gpu_report
from quantized_lm.errors import BackendError
from quantized_lm.ops.device_args import Codes
from quantized_lm.ops.device_layout import DeviceWeight
from quantized_lm.ops.tiles import TABLE, read_tiles
from quantized_lm.ops.triton.launch import Kernels

T = TypeVar("T")


def track(items: Sequence[T], _: str) -> Iterable[T]:
    return items


def test_every_stage_runs_and_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    report = run(rehearsal(folder), track)
    record = json.loads((folder / REPORT).read_bytes())
    assert record["is_rehearsal"]
    assert record["comparisons"] == report.comparisons > 50
    assert {one["what"] for one in record["times"]} == {"peak", "product", "output", "attention"}
    assert not [one for one in report.times if one.failure is not None]
    differences = [one.difference for one in report.lists if one.difference is not None]
    assert len(differences) == 2
    assert max(differences) < 1e-3
    assert read_tiles(report.device, (folder / TABLE).read_text()).tiles
    with Console(record=True, width=140) as console:
        print_gpu_report(report, console)
    assert "times mean nothing" in console.export_text()
    assert tuned(rehearsal(folder)).products.tiles == TRIED_TILES


def test_nothing_is_timed_where_a_kernel_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Kernels.matmul

    def wrong(self: Kernels, weight: DeviceWeight, x: Codes, num: int, y: Tensor, *_: Any) -> None:
        true(self, weight, x, num, y)
        y[-1, -1] += 1

    monkeypatch.setattr(Kernels, "matmul", wrong)
    with pytest.raises(BackendError, match=r"M 2, packed 2: 1 of 140 numbers differ"):
        run(rehearsal(tmp_path), track)
    assert not (tmp_path / REPORT).exists()
