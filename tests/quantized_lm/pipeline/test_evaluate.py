from __future__ import annotations

from dataclasses import replace

import pytest

from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.evaluate import evaluate, line_nats
from quantized_lm.pipeline.loop import mean_nll
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.train import next_token_loss
from tests.conftest import TinyRun


def test_the_report_compares_artifact_and_teacher_on_held_out_lines(tiny_run: TinyRun) -> None:
    report = evaluate(tiny_run.recipe, out=tiny_run.out, artifact=tiny_run.artifact)
    assert report.split == "test"
    assert report.lines == 60
    assert report.perplexity_ratio == pytest.approx(
        report.token_perplexity / report.teacher_token_perplexity
    )
    assert report.nll_difference_low <= report.nll_difference <= report.nll_difference_high
    assert report.word_perplexity > report.token_perplexity > 1


def test_trees_and_windows_agree_on_the_perplexity(tiny_run: TinyRun) -> None:
    teacher = load_teacher(tiny_run.recipe, tiny_run.out)
    tokens = open_corpus(tiny_run.out / "corpus").tokens("dev")
    windows = mean_nll(next_token_loss(teacher, compiled=False), tokens, window=48)
    report = evaluate(
        replace(tiny_run.recipe), out=tiny_run.out, artifact=tiny_run.artifact, split="dev"
    )
    assert windows == pytest.approx(report.teacher_nll, rel=5e-3)  # windows run in bfloat16


def test_no_lines_take_no_nats(tiny_run: TinyRun) -> None:
    assert line_nats(load_teacher(tiny_run.recipe, tiny_run.out), [], "nothing").size == 0
