"""`score`: probabilities and perplexity, with </s> counted as it says."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from quantized_lm.scoring import ScoreRequest, score_lists
from tests.fakes import fake_loaded

from .conftest import Command


@pytest.mark.parametrize("is_final", [True, False])
def test_perplexity_counts_one_end_per_text(run: Command, *, is_final: bool) -> None:
    texts = ["the cat sat", "a mat"]
    result = run("score", *texts, *([] if is_final else ["--partial"]))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    scores = score_lists([ScoreRequest(tuple(texts), final=is_final)], fake_loaded("tiny"))[
        0
    ].scores
    total = sum(score.log_prob for score in scores)
    ends = 2 * is_final
    assert report["log_prob"] == pytest.approx(total)
    assert (report["words"], report["ends_counted"]) == (5, ends)
    assert report["perplexity_per_word"] == pytest.approx(math.exp(-total / (5 + ends)))
    tokens = sum(score.num_tokens for score in scores) + ends
    assert report["perplexity_per_token"] == pytest.approx(math.exp(-total / tokens))
    assert result.stdout.splitlines()[0] == f"{scores[0].log_prob:.4f}\tthe cat sat"


def test_tokens_add_up_to_their_text(run: Command) -> None:
    lines = run("score", "--tokens", "the cat").stdout.splitlines()
    tokens = [float(line.split()[0]) for line in lines if line.startswith("  ")]
    assert sum(tokens) == pytest.approx(float(lines[0].split("\t")[0]), abs=1e-3)
    assert lines[-2].split()[-1] == "</s>"


def test_unknown_words_are_shown(run: Command) -> None:
    assert "unknown: zebra!" not in run("score", "the cat").stdout
    assert "  unknown: über" in run("score", "the über").stdout


def test_a_file_is_scored_line_by_line(run: Command, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("the cat\n\n a mat \n" * 30)
    report = json.loads(run("score", "--file", path).stdout.splitlines()[-1])
    assert (report["texts"], report["words"]) == (60, 120)


def test_nothing_counted_has_no_perplexity(run: Command) -> None:
    report = json.loads(run("score", "--partial", "").stdout.splitlines()[-1])
    assert report["perplexity_per_word"] is None


def test_unusable_input_ends_with_code_2(run: Command, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert "give one of them" in run("score").stderr
    assert "give one of them" in run("score", "a", "--file", empty).stderr
    assert "no texts" in run("score", "--file", empty).stderr
    assert "cannot be read" in run("score", "--file", tmp_path / "absent").stderr
    long = run("score", "the " * 200)
    assert (long.exit_code, "takes at most" in long.stderr) == (2, True)


def test_a_damaged_file_is_one_line_and_code_2(run: Command, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt.gz"
    whole = gzip.compress("".join(f"the cat {number}\n" for number in range(9999)).encode())
    for damaged in (whole[: len(whole) // 2], whole[:10] + b"\xff" * 64):
        path.write_bytes(damaged)
        result = run("score", "--file", path)
        assert result.exit_code == 2
        assert f"{path}: cannot be read" in result.stderr
        assert len(result.stderr.splitlines()) == 1
