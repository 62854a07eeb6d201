from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.evaluate import (
    HeldOutText,
    Passage,
    compare,
    evaluate,
    held_out_text,
    line_nats,
)
from quantized_lm.pipeline.loop import mean_nll
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.train import next_token_loss
from tests.conftest import TinyRun


def test_the_report_compares_artifact_and_teacher_on_held_out_lines(tiny_run: TinyRun) -> None:
    report = evaluate(tiny_run.recipe, run=tiny_run.out, artifact=tiny_run.artifact)
    assert report.split == "test"
    assert report.lines == 60
    assert report.perplexity_ratio == pytest.approx(
        report.token_perplexity / report.teacher_token_perplexity
    )
    assert report.nll_difference_low <= report.nll_difference <= report.nll_difference_high
    assert report.word_perplexity > report.token_perplexity > 1


def test_trees_and_windows_agree_on_the_perplexity(tiny_run: TinyRun) -> None:
    teacher = load_teacher(tiny_run.recipe, tiny_run.out)
    tokens = open_corpus(tiny_run.recipe.corpus, tiny_run.out / "corpus").tokens("dev")
    windows = mean_nll(next_token_loss(teacher, compiled=False), tokens, window=48)
    report = evaluate(tiny_run.recipe, run=tiny_run.out, artifact=tiny_run.artifact, split="dev")
    assert windows == pytest.approx(report.teacher_nll, rel=5e-3)  # windows run in bfloat16


def test_no_lines_take_no_nats(tiny_run: TinyRun) -> None:
    nothing = HeldOutText("dev", ())
    assert line_nats(load_teacher(tiny_run.recipe, tiny_run.out), nothing, "nothing").size == 0


def test_running_text_is_scored_after_the_lines_before_it(tiny_run: TinyRun) -> None:
    corpus = open_corpus(tiny_run.recipe.corpus, tiny_run.out / "corpus")
    alone = held_out_text(tiny_run.recipe, corpus, "dev")
    running = held_out_text(
        replace(tiny_run.recipe, corpus=replace(tiny_run.recipe.corpus, continuous=True)),
        corpus,
        "dev",
    )
    lines = [line for part in alone.passages for line in part.lines]
    assert [line for part in running.passages for line in part.lines] == lines
    so_far: list[int] = []
    for part in running.passages:
        assert list(part.context) == so_far[len(so_far) - len(part.context) :]
        assert not so_far or len(part.context) > 8
        block = [token for line in part.lines for token in line]
        assert len(part.context) + len(block) <= tiny_run.recipe.train.window
        so_far += block


@pytest.mark.parametrize("continuous", [False, True])
def test_a_line_longer_than_the_model_comes_in_pieces(tiny_run: TinyRun, continuous: bool) -> None:
    recipe = replace(
        tiny_run.recipe,
        model={**tiny_run.recipe.model, "max_tokens": 7},
        corpus=replace(tiny_run.recipe.corpus, continuous=continuous),
    )
    corpus = open_corpus(tiny_run.recipe.corpus, tiny_run.out / "corpus")
    so_far: list[int] = []
    longest = 0
    for part in held_out_text(recipe, corpus, "dev").passages:
        own = [token for piece in part.lines for token in piece]
        assert len(part.context) + len(own) <= 7
        assert list(part.context) == so_far[len(so_far) - len(part.context) :]
        longest = max(longest, *(len(piece) for piece in part.lines))
        so_far += own
    assert so_far == corpus.tokens("dev").tolist()
    assert longest == 7


def test_pieces_count_as_the_one_line_that_they_are() -> None:
    whole = HeldOutText("dev", (Passage((), ((5, 6, 7, 0),)), Passage((), ((8, 0), (9, 0)))))
    cut = HeldOutText(
        "dev", (Passage((), ((5, 6),)), Passage((5, 6), ((7, 0),)), whole.passages[1])
    )
    expected = compare(np.array([4.0, 2, 9]), np.ones(3), whole, backend="cpu", words=5)
    found = compare(
        np.array([3.0, 1, 2, 9]), np.array([0.5, 0.5, 1, 1]), cut, backend="cpu", words=5
    )
    assert found == expected
    assert (found.lines, found.tokens) == (3, 8)


def test_a_line_in_context_costs_what_one_path_says(tiny_run: TinyRun) -> None:
    teacher = load_teacher(tiny_run.recipe, tiny_run.out)
    lines = ((5, 6, 0), (7, 0), (8, 9, 10, 0))
    at_once = line_nats(teacher, HeldOutText("dev", (Passage((), lines),)), "one path")
    in_context = [
        line_nats(
            teacher, HeldOutText("dev", (Passage(sum(lines[:n], ()), (lines[n],)),)), "context"
        )[0]
        for n in range(3)
    ]
    assert at_once == pytest.approx(in_context, abs=1e-4)
    assert at_once[2] != pytest.approx(
        line_nats(teacher, HeldOutText("dev", (Passage((), lines[2:]),)), "alone")[0], abs=1e-3
    )
