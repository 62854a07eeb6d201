from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.errors import DataError, InputError
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline import search as stage
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.search import (
    MixedQuantizer,
    SearchPlan,
    SearchReport,
    make_supernet,
    mixtures_of,
    read_search,
    search,
)
from quantized_lm.pipeline.sizes import size_table
from quantized_lm.quant.formats import Grid

from .conftest import FloatRun

pytestmark = pytest.mark.usefixtures("one_thread")
CHOICES = ("1bit", "2bit", "4bit:normal")


@pytest.fixture(autouse=True)
def few_batches(any_float_run: FloatRun) -> FloatRun:
    """The run with small batches, each step a few milliseconds."""
    quick = replace(any_float_run.recipe.quantize, batch_windows=2, warmup_steps=2)
    return replace(any_float_run, recipe=replace(any_float_run.recipe, quantize=quick))


def plan_of(run: FloatRun, steps: int) -> SearchPlan:
    sizes = size_table(load_teacher(run.recipe, run.folder), CHOICES)
    budget = sizes.total(dict.fromkeys(sizes.packed, "2bit"))
    return SearchPlan(budget, CHOICES, steps=steps, eval_every=steps, logit_lr=0.2)


def run_search(run: FloatRun, plan: SearchPlan, out: Path) -> SearchReport:
    return search(run.recipe, plan, run=run.folder, out=out, checkpoint_every_s=0.0)


def test_a_search_meets_the_budget_and_keeps_its_trajectory(
    few_batches: FloatRun, tmp_path: Path
) -> None:
    plan = plan_of(few_batches, steps=10)
    report = run_search(few_batches, plan, tmp_path)
    teacher = load_teacher(few_batches.recipe, few_batches.folder)
    sizes = size_table(teacher, CHOICES)
    found = report.allocation
    assert found.metric == "nas"
    assert list(found.formats) == list(report.trajectory) == matrix_names(teacher)
    assert found.size_bytes == sizes.total(found.formats) <= plan.budget_bytes
    expected = []
    for point in (0, -1):
        shares = {name: rows[point] for name, rows in report.trajectory.items()}
        assert all(sum(row) == pytest.approx(1) for row in shares.values())
        expected.append(
            sizes.fixed_bytes
            + sum(
                share * sizes.packed[name][choice]
                for name, row in shares.items()
                for choice, share in zip(CHOICES, row, strict=True)
            )
        )
    assert expected[1] < expected[0]  # the penalty is felt
    assert read_search(tmp_path / "search.json") == report
    assert run_search(few_batches, plan, tmp_path) == report


def test_a_killed_search_ends_where_it_would_have(
    few_batches: FloatRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(few_batches, steps=6)
    whole = run_search(few_batches, plan, tmp_path / "whole")
    advance = MixedQuantizer.advance

    def dies(self: MixedQuantizer, progress: float) -> None:
        if progress > 0.5:
            raise KeyboardInterrupt
        advance(self, progress)

    monkeypatch.setattr(MixedQuantizer, "advance", dies)
    with pytest.raises(KeyboardInterrupt):
        run_search(few_batches, plan, tmp_path / "killed")
    monkeypatch.undo()
    assert run_search(few_batches, plan, tmp_path / "killed") == whole
    with pytest.raises(DataError, match="another recipe"):
        run_search(few_batches, replace(plan, cold=0.3), tmp_path / "killed")


def test_weights_and_logits_learn_in_turn_and_nothing_else(
    few_batches: FloatRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    stepper = stage._stepper

    def watch(supernet: torch.nn.Module) -> None:
        seen.append({name: p.detach().clone() for name, p in supernet.named_parameters()})

    kept: list[torch.nn.Module] = []

    def made(*arguments: object) -> object:
        kept.append(make_supernet(*arguments))  # type: ignore[arg-type]
        return kept[-1]

    def watched(mixtures: dict[str, MixedQuantizer]) -> object:
        after = stepper(mixtures)
        watch(kept[-1])

        def after_update(progress: float) -> None:
            after(progress)
            watch(kept[-1])

        return after_update

    monkeypatch.setattr(stage, "make_supernet", made)
    monkeypatch.setattr(stage, "_stepper", watched)
    run_search(few_batches, plan_of(few_batches, steps=3), tmp_path)

    def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
        return {name.rsplit(".", 1)[-1] for name in before if not before[name].equal(after[name])}

    start, weights, logits, again = seen
    assert changed(start, weights) == changed(logits, again) == {"original", "log_scale"}
    assert changed(weights, logits) == {"logits"}


def test_a_mixture_is_the_weighted_sum_of_rounded_weights() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    mixture = MixedQuantizer(weight, SearchPlan(1, CHOICES, cold=1e-6)).eval()
    parts = [branch.quantize(weight) for branch in mixture.branches]  # type: ignore[operator]
    assert [part.format for part in parts] == [Grid.parse(choice).format for choice in CHOICES]
    with torch.no_grad():
        mixture.logits.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
        expected = sum(
            share * part.dequantize() for share, part in zip((0.2, 0.5, 0.3), parts, strict=True)
        )
        assert np.allclose(mixture(weight).numpy(), expected, atol=1e-5)
        mixture.train()
        mixture.advance(1.0)  # cold: every sample is one of the forms, as often as its share
        torch.manual_seed(0)
        drawn = [
            [np.allclose(sample, part.dequantize(), atol=1e-5) for part in parts].index(True)
            for sample in (mixture(weight).numpy() for _ in range(300))
        ]
    assert np.bincount(drawn) / 300 == pytest.approx([0.2, 0.5, 0.3], abs=0.08)


def test_an_impossible_budget_is_refused_before_anything_is_trained(
    few_batches: FloatRun, tmp_path: Path
) -> None:
    plan = replace(plan_of(few_batches, steps=6), budget_bytes=100)
    with pytest.raises(InputError, match="the smallest reachable size is"):
        run_search(few_batches, plan, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="no search can be read"):
        read_search(tmp_path / "search.json")


def test_a_mixture_is_found_for_every_matrix(few_batches: FloatRun) -> None:
    teacher = load_teacher(few_batches.recipe, few_batches.folder)
    supernet = make_supernet(few_batches.recipe, teacher, plan_of(few_batches, steps=6))
    assert list(mixtures_of(supernet)) == matrix_names(teacher)
