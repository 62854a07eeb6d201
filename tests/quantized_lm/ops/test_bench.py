"""Claims about the benchmark: right before fast, and one JSON object at the end."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantized_lm.errors import BackendError
from quantized_lm.ops import bench
from quantized_lm.ops.backend import PackedWeight
from quantized_lm.ops.reference import ReferenceBackend

TINY = bench.BenchConfig(
    formats=("1bit", "ternary"),
    rows=(2,),
    shapes=((8, 16),),
    output_shape=(24, 16),
    repeats=2,
    run_s=0.0,
)


@dataclass(frozen=True)
class WrongBackend(ReferenceBackend):
    """Fast and wrong."""

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """Return zeros."""
        return torch.zeros(len(x), weight.shape[0])


def test_every_backend_is_timed_on_every_format_beside_torch() -> None:
    threads = torch.get_num_threads()
    report = bench.run(TINY, [ReferenceBackend()])
    seen = [(row.operation, row.backend, row.format, row.N) for row in report.timings]
    assert seen == [
        ("linear", "torch", "float32", 8),
        ("linear", "reference", "1bit", 8),
        ("linear", "reference", "ternary", 8),
        ("gather_log_prob", "torch", "float32", 24),
        ("gather_log_prob", "reference", "1bit", 24),
        ("gather_log_prob", "reference", "ternary", 24),
    ]
    assert all(row.median_s > 0 and row.gflops > 0 and row.spread >= 0 for row in report.timings)
    assert report.timings[0].times_torch == pytest.approx(1)
    assert torch.get_num_threads() == threads


def test_a_wrong_backend_is_not_timed() -> None:
    with pytest.raises(BackendError, match="linear of reference"):
        bench.run(TINY, [WrongBackend()])


def test_the_last_line_is_one_json_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "QUICK", TINY)
    monkeypatch.setattr(bench, "available_backends", lambda: [ReferenceBackend()])
    bench.main(["--quick"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["threads"] == 1
    assert len(report["timings"]) == 6
    assert report["timings"][1]["format"] == "1bit"


def test_the_reference_is_always_among_the_backends() -> None:
    assert [backend.name for backend in bench.available_backends()][-1] == "reference"


def test_a_machine_without_cpuinfo_is_named_by_its_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "some-cpu")
    monkeypatch.setattr(bench, "_CPU_INFORMATION", Path("/nonexistent/cpuinfo"))
    assert bench.run(TINY, [ReferenceBackend()]).machine.startswith("some-cpu, Python")
