from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantized_lm.errors import DataError, RecipeError
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline import sensitivity
from quantized_lm.pipeline.batches import IGNORED, Windows
from quantized_lm.pipeline.hessian import ProbePlan
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.sensitivity import (
    SensitivityReport,
    calibration_windows,
    divergences,
    measure_joint,
    measure_sensitivity,
    read_report,
)
from quantized_lm.pipeline.sizes import packed_size_bytes
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor
from tests.runs import leave_trained

from .conftest import FloatRun

pytestmark = pytest.mark.usefixtures("one_thread")
CHOICES = ("1bit", "2bit", "8bit")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows in each."""
    monkeypatch.setattr(sensitivity, "_BATCH_TOKENS", 96)


def measure(run: FloatRun, out: Path, metric: str = "kl") -> SensitivityReport:
    return measure_sensitivity(
        run.recipe, metric=metric, choices=CHOICES, run=run.folder, out=out, windows=4
    )


def rounded(model: FloatModel, name: str, choice: str) -> dict[str, QuantizedTensor]:
    weight = model.get_parameter(name).detach().numpy()
    return {name: round_to_nearest(weight, Grid.parse(choice))}


def test_divergences_are_those_of_the_definition(any_float_run: FloatRun) -> None:
    model = load_teacher(any_float_run.recipe, any_float_run.folder)
    (windows, *_) = calibration_windows(any_float_run.recipe, any_float_run.folder, 3)
    name = matrix_names(model)[1]
    variants = [rounded(model, name, choice) for choice in CHOICES]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = divergences(model, windows, variants)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())

    def log_prob() -> torch.Tensor:
        hidden = model(torch.from_numpy(windows.inputs), torch.from_numpy(windows.document))
        return model.embedding.logits(hidden).double().log_softmax(-1)

    kept = torch.from_numpy(windows.targets != IGNORED)
    reference = log_prob()
    assert found[:, 0].tolist() == kept.sum(1).tolist()
    for column, variant in enumerate(variants, start=1):
        model.get_parameter(name).copy_(torch.from_numpy(variant[name].dequantize()))
        each = (reference.exp() * (reference - log_prob())).sum(-1)
        expected = (each * kept).sum(1)
        assert found[:, column] == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)


def test_every_matrix_gets_a_cost_and_a_size_in_every_format(
    any_float_run: FloatRun, tmp_path: Path
) -> None:
    report = measure(any_float_run, tmp_path)
    model = load_teacher(any_float_run.recipe, any_float_run.folder)
    assert list(report.costs) == list(report.sizes.packed) == matrix_names(model)
    for name, row in report.costs.items():
        assert row["1bit"].mean > row["2bit"].mean > row["8bit"].mean > -1e-6  # float32 rounding
        assert all(0 < row[choice].standard_error < row[choice].mean for choice in ("1bit", "2bit"))
        num_rows, num_columns = model.get_parameter(name).shape
        for choice, size in report.sizes.packed[name].items():
            assert size == packed_size_bytes((num_rows, num_columns), Grid.parse(choice))
    assert report.windows == 4
    assert 4 * 40 < report.tokens <= 4 * 48
    assert not report.traces


def test_the_hessian_cost_is_the_trace_times_the_squared_error(
    any_float_run: FloatRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "PROBES", ProbePlan(min_probes=3, max_probes=3))
    by_trace = measure(any_float_run, tmp_path, "hessian")
    model = load_teacher(any_float_run.recipe, any_float_run.folder)
    for name, row in by_trace.costs.items():
        weight = model.get_parameter(name).detach().numpy().astype(np.float64)
        error = np.square(rounded(model, name, "2bit")[name].dequantize() - weight).sum()
        expected = 0.5 * by_trace.traces[name].mean / weight.size * error
        assert row["2bit"].mean == pytest.approx(expected, rel=1e-4)


def test_what_was_measured_is_read_and_not_measured_again(
    any_float_run: FloatRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = measure(any_float_run, tmp_path)
    assert read_report(tmp_path / "kl.json") == report
    assert not list(tmp_path.glob("*.partial.json"))
    monkeypatch.setattr(sensitivity, "METRICS", {"kl": None})
    assert measure(any_float_run, tmp_path) == report


def test_a_killed_measurement_goes_on(
    any_float_run: FloatRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(any_float_run, tmp_path / "whole")
    measured: list[Windows] = []

    def dies(model: FloatModel, windows: Windows, variants: object) -> object:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(windows)
        return divergences(model, windows, variants)  # type: ignore[arg-type]

    monkeypatch.setattr(sensitivity, "divergences", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(any_float_run, tmp_path / "killed")
    measured.clear()
    assert measure(any_float_run, tmp_path / "killed") == whole
    assert len(measured) == 1


def test_another_teacher_is_measured_anew(any_float_run: FloatRun, tmp_path: Path) -> None:
    shutil.copytree(any_float_run.folder, tmp_path / "run")
    first = measure(any_float_run, tmp_path)
    model = load_teacher(any_float_run.recipe, any_float_run.folder)
    model.get_parameter("embedding.weight").mul_(1.5)
    leave_trained(tmp_path / "run", any_float_run.recipe, model)
    second = measure(FloatRun(any_float_run.recipe, tmp_path / "run"), tmp_path)
    assert first.key != second.key
    assert first.costs != second.costs


def test_only_training_text_is_measured_on(any_float_run: FloatRun, tmp_path: Path) -> None:
    shutil.copytree(any_float_run.folder, tmp_path / "run")
    for split in ("dev", "test"):
        (tmp_path / "run" / "corpus" / f"{split}.bin").unlink()
    run = FloatRun(any_float_run.recipe, tmp_path / "run")
    assert measure(run, tmp_path).costs


def test_the_joint_divergence_is_that_of_all_matrices_at_once(
    any_float_run: FloatRun, tmp_path: Path
) -> None:
    report = measure(any_float_run, tmp_path)

    def joint(choice: str) -> float:
        formats = dict.fromkeys(report.costs, choice)
        run = any_float_run.folder
        return measure_joint(any_float_run.recipe, formats, run=run, windows=4).mean

    summed = sum(row["8bit"].mean for row in report.costs.values())
    assert joint("8bit") == pytest.approx(summed, rel=0.5)
    assert joint("2bit") > 100 * joint("8bit")


def test_wrong_names_and_missing_files_are_refused(any_float_run: FloatRun, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="metric is 'fisher'; need one of kl, hessian"):
        measure(any_float_run, tmp_path, "fisher")
    with pytest.raises(DataError, match="no prepared corpus"):
        measure(replace(any_float_run, folder=tmp_path), tmp_path)
    with pytest.raises(DataError, match="run `secondpass sensitivity` first"):
        read_report(tmp_path / "kl.json")
