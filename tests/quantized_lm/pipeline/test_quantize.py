from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantized_lm.errors import DataError, RecipeError
from quantized_lm.pipeline import loop
from quantized_lm.pipeline.batches import PackingState
from quantized_lm.pipeline.checkpoint import Training, load_weights, save_checkpoint
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.loop import mean_nll
from quantized_lm.pipeline.quantize import (
    load_student,
    load_teacher,
    make_student,
    quantize,
    quantizers_of,
)
from quantized_lm.pipeline.train import make_model, next_token_loss
from quantized_lm.quant.quantizers.rated import RatedScale
from tests.conftest import TinyRun
from tests.tiny import tiny_recipe


def test_the_student_uses_the_formats_of_the_recipe(tiny_run: TinyRun) -> None:
    student = load_student(tiny_run.recipe, run=tiny_run.out, out=tiny_run.out / "quantize")
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
    assert rows[0]["step"] == 0
    assert rows[0]["dev_nll"] > rows[-1]["dev_nll"]


def test_training_that_only_does_harm_keeps_what_rounding_made(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    plan = replace(tiny_run.recipe.quantize, steps=3, matrix_lr=0.05, other_lr=0.05, warmup_steps=0)
    recipe = replace(tiny_run.recipe, quantize=plan)
    quantize(recipe, run=tiny_run.out, out=tmp_path)
    rounded = replace(recipe, quantize=replace(plan, steps=0))
    quantize(rounded, run=tiny_run.out, out=tmp_path / "rounded")
    kept = load_student(recipe, run=tiny_run.out, out=tmp_path).packed
    for name, tensor in load_student(
        rounded, run=tiny_run.out, out=tmp_path / "rounded"
    ).packed.items():
        np.testing.assert_array_equal(kept[name].dequantize(), tensor.dequantize())


def test_quantizing_needs_a_trained_teacher(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared corpus"):
        quantize(tiny_recipe(), run=tmp_path, out=tmp_path / "quantize")


def test_a_matrix_without_a_format_is_named(tiny_run: TinyRun) -> None:
    partial = replace(tiny_run.recipe.quantize, formats={"blocks.*": "4bit"})
    teacher = load_teacher(tiny_run.recipe, tiny_run.out)
    with pytest.raises(RecipeError, match=r"no pattern matches 'embedding\.weight'"):
        make_student(replace(tiny_run.recipe, quantize=partial), teacher)


@pytest.mark.parametrize(
    "patterns",
    [
        {"formats": {"*": "4bit", "embedding.*": "8bit"}},
        {"formats": {"*": "4bit"}, "overrides": {"embeding.*": {}}},
    ],
    ids=["hidden behind another", "misspelled"],
)
def test_a_pattern_that_decides_nothing_is_named(
    tiny_run: TinyRun, patterns: dict[str, Any]
) -> None:
    plan = replace(tiny_run.recipe.quantize, **patterns)
    teacher = load_teacher(tiny_run.recipe, tiny_run.out)
    with pytest.raises(RecipeError, match=r"'embed+ing\.\*' is the first match of no matrix"):
        make_student(replace(tiny_run.recipe, quantize=plan), teacher)


@pytest.mark.parametrize(
    ("method", "kl_weight", "settings"),
    [
        ("learned", 0.9, {"tie": "tensor"}),
        ("admm", 0.0, {"interval": 4, "tuning_share": 0.4}),
        ("sawb", 0.5, {}),
        ("rated", 0.9, {"bits": 1.5}),
        ("rated", 0.9, {"bits": 1.5, "one_price": True}),
    ],
)
def test_every_method_trains_what_it_packs(
    tiny_run: TinyRun, tmp_path: Path, method: str, kl_weight: float, settings: dict[str, Any]
) -> None:
    plan = replace(
        tiny_run.recipe.quantize,
        method=method,
        settings=settings,
        kl_weight=kl_weight,
        formats={"*": "2bit"},
        steps=24,
        eval_every=12,
        clip_norm=1.0,
        dropout=0.1,
    )
    recipe = replace(tiny_run.recipe, quantize=plan)
    quantize(recipe, run=tiny_run.out, out=tmp_path)
    best = min(rows_of(tmp_path), key=lambda row: row["dev_nll"])
    student = load_student(recipe, run=tiny_run.out, out=tmp_path)
    model = make_model(recipe)
    packed = {name: torch.from_numpy(t.dequantize()) for name, t in student.packed.items()}
    model.load_state_dict({**packed, **student.plain})
    tokens = open_corpus(recipe.corpus, tiny_run.out / "corpus").tokens("dev")
    nll = mean_nll(next_token_loss(model.eval(), compiled=False), tokens, window=48)
    assert nll == pytest.approx(best["dev_nll"], abs=1e-3)
    rounded = replace(recipe, quantize=replace(plan, steps=0))
    quantize(rounded, run=tiny_run.out, out=tmp_path / "rounded")
    assert best["dev_nll"] < rows_of(tmp_path / "rounded")[0]["dev_nll"]


def test_a_price_for_all_matrices_survives_a_kill(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"bits": 1.5, "one_price": True, "interval": 3}
    plan = replace(tiny_run.recipe.quantize, method="rated", settings=settings, steps=12)
    recipe = replace(tiny_run.recipe, quantize=replace(plan, formats={"*": "4bit:quinary"}))
    quantize(recipe, run=tiny_run.out, out=tmp_path / "whole", checkpoint_every_s=0)

    def killed(path: Path, training: Training, packing: PackingState, *, key: str) -> None:
        save_checkpoint(path, training, packing, key=key)
        if training.progress.step == 7:  # between two measurements of the rate
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        quantize(recipe, run=tiny_run.out, out=tmp_path / "killed", checkpoint_every_s=0)
    monkeypatch.undo()
    quantize(recipe, run=tiny_run.out, out=tmp_path / "killed", checkpoint_every_s=0)
    ends = [load_weights(tmp_path / run / "checkpoint.pt") for run in ("whole", "killed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_settings_can_differ_by_tensor(tiny_run: TinyRun) -> None:
    plan = replace(
        tiny_run.recipe.quantize,
        method="rated",
        settings={"bits": 2.0},
        overrides={"blocks.0.up*": {"bits": 1.2}, "blocks.*": {"bits": 1.6}},
        formats={"*": "4bit:quinary"},
    )
    teacher = load_teacher(tiny_run.recipe, tiny_run.out)
    student = make_student(replace(tiny_run.recipe, quantize=plan), teacher)
    rates = {}
    for name, (quantizer, weight) in quantizers_of(student).items():
        assert isinstance(quantizer, RatedScale)
        rates[name] = quantizer.rate(weight)
    assert rates["embedding.weight"] == pytest.approx(2.0, abs=0.03)
    assert rates["blocks.0.up.weight"] == pytest.approx(1.2, abs=0.03)
    assert rates["blocks.1.up.weight"] == pytest.approx(1.6, abs=0.03)
    wrong = replace(plan, overrides={"embedding*": {"bitz": 2.0}})
    with pytest.raises(RecipeError, match="unknown field 'bitz'"):
        make_student(replace(tiny_run.recipe, quantize=wrong), teacher)


def test_without_steps_the_teacher_is_only_rounded(tiny_run: TinyRun, tmp_path: Path) -> None:
    plan = replace(tiny_run.recipe.quantize, steps=0, formats={"*": "8bit"})
    recipe = replace(tiny_run.recipe, quantize=plan)
    quantize(recipe, run=tiny_run.out, out=tmp_path)
    (row,) = rows_of(tmp_path)
    assert row["step"] == 0
    assert "train_loss" not in row
    teacher = dict(load_teacher(recipe, tiny_run.out).named_parameters())
    for name, tensor in load_student(recipe, run=tiny_run.out, out=tmp_path).packed.items():
        weight = teacher[name].numpy()
        assert np.abs(tensor.dequantize() - weight).max() < 0.02 * np.abs(weight).max()


def test_an_extra_gradient_changes_the_way_and_not_the_count(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    plan = replace(tiny_run.recipe.quantize, steps=6, eval_every=6, warmup_steps=0)
    for name, extra in (("plain", False), ("extra", True)):
        recipe = replace(tiny_run.recipe, quantize=replace(plan, extra_gradient=extra))
        quantize(recipe, run=tiny_run.out, out=tmp_path / name)
    plain, extra_row = rows_of(tmp_path / "plain")[-1], rows_of(tmp_path / "extra")[-1]
    assert plain["step"] == extra_row["step"] == 6
    assert plain["tokens"] == extra_row["tokens"]
    weights = [load_weights(tmp_path / name / "weights.pt")["gain"] for name in ("plain", "extra")]
    assert not torch.equal(*weights)
    assert extra_row["dev_nll"] == pytest.approx(plain["dev_nll"], abs=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method is 'magic'; need one of learned, admm"),
        ({"settings": {"ties": "row"}}, "unknown field 'ties'; did you mean 'tie'"),
    ],
)
def test_a_method_or_setting_that_is_not_known_is_named(
    tiny_run: TinyRun, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    recipe = replace(tiny_run.recipe, quantize=replace(tiny_run.recipe.quantize, **change))
    with pytest.raises(RecipeError, match=message):
        quantize(recipe, run=tiny_run.out, out=tmp_path)


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (folder / "history.jsonl").read_text().splitlines()]
