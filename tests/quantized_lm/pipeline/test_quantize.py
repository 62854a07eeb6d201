from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantized_lm.errors import DataError, RecipeError
from quantized_lm.pipeline.quantize import load_student, load_teacher, make_student, quantize
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.qat import FakeQuantizer
from tests.conftest import TinyRun
from tests.tiny import tiny_recipe


def test_the_student_uses_the_formats_of_the_recipe(tiny_run: TinyRun) -> None:
    student = load_student(tiny_run.recipe, tiny_run.out)
    assert student.packed["blocks.0.out.weight"].format == "2bit"
    assert student.packed["embedding.weight"].format == "4bit"
    assert set(student.plain) == {"gain", "blocks.0.mix", "blocks.1.mix"}


def test_distillation_beats_rounding_the_teacher(tiny_run: TinyRun) -> None:
    rows = [
        json.loads(row)
        for row in (tiny_run.out / "quantize" / "history.jsonl").read_text().splitlines()
    ]
    teacher = json.loads((tiny_run.out / "train" / "history.jsonl").read_text().splitlines()[-1])
    assert rows[-1]["dev_nll"] < teacher["dev_nll"] + 0.05


def test_quantizing_needs_a_trained_teacher(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared corpus"):
        quantize(tiny_recipe(), out=tmp_path)


def test_a_matrix_without_a_format_is_named(tiny_run: TinyRun) -> None:
    partial = replace(tiny_run.recipe.quantize, formats={"blocks.*": "4bit"})
    teacher = load_teacher(tiny_run.recipe, tiny_run.out)
    with pytest.raises(RecipeError, match=r"no pattern matches 'embedding\.weight'"):
        make_student(replace(tiny_run.recipe, quantize=partial), teacher)


@pytest.mark.parametrize(
    "grid", [Grid.named("2bit"), Grid.named("4bit", "normal"), Grid.named("1bit")]
)
def test_training_sees_the_values_that_are_packed(grid: Grid) -> None:
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    quantizer = FakeQuantizer(weight, grid)
    with torch.no_grad():
        quantizer.log_scale.add_(torch.randn(7, 1), alpha=0.1)
    packed = quantizer.quantize(weight)
    assert np.array_equal(packed.dequantize(), quantizer(weight).detach().numpy())
    assert packed.format == grid.format


def test_gradients_pass_inside_the_range_and_stop_outside() -> None:
    quantizer = FakeQuantizer(torch.tensor([[1.0, -1.0, 0.5, 0.2]]), Grid.named("2bit"))
    scale = quantizer.log_scale.exp().item()
    weight = torch.tensor([[0.2 * scale, 9.0 * scale, -9.0 * scale, 2.9 * scale]])
    weight.requires_grad_()
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 0.0, 0.0, 1.0]]
    # d/dscale is level - ratio inside and the end level outside (Esser et al., 2020, eq. 3)
    expected = (1 - 0.2) + 3 - 3 + (3 - 2.9)
    assert quantizer.log_scale.grad is not None
    assert quantizer.log_scale.grad.item() == pytest.approx(expected * scale, rel=1e-2)
