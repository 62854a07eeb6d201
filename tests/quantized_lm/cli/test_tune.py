"""`tune`: a weights file that ranks better on the dev set, and what it says of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from quantized_lm.weights_file import read_weights

from .conftest import Command


def test_tuned_weights_are_no_worse_and_can_be_used(run: Command, scored: Path) -> None:
    target = scored.with_name("weights.json")
    result = run("tune", scored, target)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["wer_oracle"] <= report["wer_tuned"] <= report["wer_am_alone"]
    assert report["free"] == ["lm[tiny]", "words"]
    assert read_weights(target).am_scale == 1.0
    evaluated = run("evaluate", scored, "--weights", target)
    systems = json.loads(evaluated.stdout.splitlines()[-1])["sets"][str(scored)]["systems"]
    assert systems["rescored"]["wer"] == pytest.approx(report["wer_tuned"])


def test_half_of_the_speakers_is_tuned_on(run: Command, scored: Path) -> None:
    target = scored.with_name("weights.json")
    report = json.loads(run("tune", scored, target, "--speakers", "even").stdout.splitlines()[-1])
    assert report["utterances"] == 3


def test_only_what_is_free_moves(run: Command, scored: Path) -> None:
    start = scored.with_name("start.json")
    start.write_text('{"weights": {"lm_scales": {"tiny": 0.75}, "word_bonus": 1.5}}')
    target = scored.with_name("weights.json")
    result = run("tune", scored, target, "--start", start, "--free", "extra[lm]")
    assert result.exit_code == 0, result.output
    weights = read_weights(target)
    assert (weights.lm_scales, weights.word_bonus) == ({"tiny": 0.75}, 1.5)


def test_lists_with_a_graph_score_tune_it_and_those_without_am_keep_the_lm(
    run: Command, lists: Path
) -> None:
    both = lists.with_name("both.jsonl")
    run("rescore", lists, both, "--first-pass", "am+lm")
    weights = lists.with_name("weights.json")
    report = json.loads(run("tune", both, weights).stdout.splitlines()[-1])
    assert report["free"] == ["graph", "lm[tiny]", "words"]
    bare = lists.with_name("bare.jsonl")
    run("rescore", lists, bare, "--first-pass", "total", "--am-scale", "0")
    report = json.loads(run("tune", bare, weights).stdout.splitlines()[-1])
    assert report["free"] == ["words"]
    assert read_weights(weights).lm_scales == {"tiny": 1.0}
    assert "wer_am_alone" not in report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--free", "lm[other]"], "weight to tune is 'lm[other]'"),
        (["--speakers", "third"], "need one of all, even, odd"),
        (["--speakers", "odd", "--speaker-of", "^"], "no speaker is odd"),
    ],
)
def test_unusable_options_end_with_code_2(
    run: Command, scored: Path, options: list[str], message: str
) -> None:
    result = run("tune", scored, scored.with_name("weights.json"), *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not scored.with_name("weights.json").exists()


def test_a_start_that_is_not_linear_is_refused(run: Command, scored: Path) -> None:
    start = scored.with_name("start.json")
    start.write_text('{"weights": {"length_norm": "tokens"}}')
    result = run("tune", scored, scored.with_name("weights.json"), "--start", start)
    assert result.exit_code == 2
    assert "linear in the weights" in result.stderr


def test_lists_without_any_score_to_hold_on_to_are_refused(run: Command, scored: Path) -> None:
    line = {
        "id": "u",
        "ref": "a",
        "hypotheses": [
            {
                "input_rank": 1,
                "text": "a",
                "components": {},
                "num_words": 1,
                "num_tokens": 1,
                "num_chars": 1,
            }
        ],
    }
    path = scored.with_name("bare.jsonl")
    path.write_text(json.dumps(line))
    result = run("tune", path, scored.with_name("weights.json"))
    assert result.exit_code == 2
    assert "no am, graph or LM score" in result.stderr


def test_the_gain_on_lists_that_were_not_tuned_on_is_told(run: Command, scored: Path) -> None:
    target = scored.with_name("weights.json")
    result = run("tune", scored, target)
    report = json.loads(result.stdout.splitlines()[-1])
    assert (report["folds"], report["folds_by"]) == (5, "list")  # of two speakers
    assert report["wer_tuned"] <= report["wer_cross_validated"]
    untuned = min(report["wer_first_pass"], report["wer_am_alone"])
    assert ("expect no gain" in result.stderr) == (report["wer_cross_validated"] >= untuned)
    assert json.loads(target.read_text())["report"]["wer_cross_validated"] >= 0.0
    fewer = json.loads(run("tune", scored, target, "--folds", "2").stdout.splitlines()[-1])
    assert (fewer["folds"], fewer["folds_by"]) == (2, "speaker")
    bare = run("tune", scored, target, "--folds", "0")
    assert "folds_by" not in json.loads(bare.stdout.splitlines()[-1])
    assert "wer_cross_validated" not in json.loads(bare.stdout.splitlines()[-1])
    assert "expect no gain" not in bare.stderr
    assert "cross-validated" not in bare.stdout


def test_scores_too_large_to_add_up_are_refused(run: Command, scored: Path) -> None:
    line = json.loads(gzip.decompress(scored.read_bytes()).splitlines()[0])
    line["hypotheses"][0]["components"]["am"] = -1e308
    path = scored.with_name("large.jsonl")
    path.write_text(json.dumps(line))
    result = run("tune", path, scored.with_name("weights.json"))
    assert result.exit_code == 2
    assert "of hypothesis 0 is -1e+308; need finite scores of at most 1e+100" in result.stderr


def test_more_folds_than_lists_are_a_fold_for_each(run: Command, scored: Path) -> None:
    result = run("tune", scored, scored.with_name("weights.json"), "--folds", 10**20)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["folds"] == 6


def test_no_gain_on_other_lists_is_warned_of(run: Command, tmp_path: Path) -> None:
    # The LM is right on half of the lists, and so is the decoder's order.
    lines = []
    for index in range(12):
        texts = [("a", -1.0), ("b", -1.0 + (-1.0) ** index)][:: 1 if index // 2 % 2 else -1]
        hypotheses = [
            {
                "input_rank": rank + 1,
                "text": text,
                "components": {"am": 0.0, "graph": None, "lm": {"tiny": lm}, "extra": {}},
                "num_words": 1,
                "num_tokens": 1,
                "num_chars": 1,
            }
            for rank, (text, lm) in enumerate(texts)
        ]
        lines.append(json.dumps({"id": f"u{index}", "ref": "a", "hypotheses": hypotheses}))
    source = tmp_path / "chance.jsonl"
    source.write_text("\n".join(lines))
    result = run("tune", source, tmp_path / "weights.json", "--free", "lm[tiny]")
    assert result.exit_code == 0, result.output
    assert "warning: tuned on a part of these lists and measured on the rest" in result.stderr
