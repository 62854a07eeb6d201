"""`evaluate`: rates, test and interval per set, and one JSON object at the end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Command


def last(stdout: str) -> dict[str, Any]:
    return json.loads(stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_rates_of_every_system_are_reported(run: Command, scored: Path) -> None:
    result = run("evaluate", scored)
    assert result.exit_code == 0, result.output
    report = last(result.stdout)["sets"][str(scored)]
    systems = report["systems"]
    assert systems["first_pass"]["wer"] == 1 / 3
    assert systems["am"]["wer"] == 1 / 3
    assert systems["oracle"]["errors"] == 0
    assert systems["rescored"]["words"] == 18
    assert 0.0 <= report["mapsswe"]["p"] <= 1.0
    assert report["bootstrap"]["low"] <= report["bootstrap"]["difference"]


def test_doubtful_lists_are_counted_with_a_warning(
    run: Command, scored: Path, tmp_path: Path
) -> None:
    lines = gzip.decompress(scored.read_bytes()).decode().splitlines()
    doubtful = tmp_path / "doubtful.jsonl"
    doubtful.write_text("\n".join([*lines, lines[0]]).replace('the cat sat"}', 'The cat saw."}'))
    tuned = ("tune", doubtful, tmp_path / "w.json", "--folds", "0")
    for command in (("evaluate", doubtful), tuned):
        result = run(*command)
        assert result.exit_code == 0, result.output
        first, second = result.stderr.splitlines()
        assert "1 utterance ids are there more than once, such as '10-0'; each line" in first
        assert second.startswith(f"warning: {doubtful}: the first pass has 14 word errors, and 0 ")
    assert run("evaluate", scored).stderr == ""


def test_no_name_and_no_number_is_cut_where_there_is_no_room(
    run: Command, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    table = run("evaluate", scored, "--baseline", "am").stdout.rpartition("{")[0]
    assert "…" not in table
    named = "".join(row.split("│")[1].strip() for row in table.splitlines() if row[0] == "│")
    assert named == 2 * str(scored)


def test_weights_rank_anew(run: Command, scored: Path) -> None:
    weights = scored.with_name("weights.json")
    weights.write_text('{"weights": {"am_scale": -1}}')
    systems = last(run("evaluate", scored, "--weights", weights).stdout)["sets"][str(scored)][
        "systems"
    ]
    assert systems["rescored"]["errors"] == 12  # the worst am_score of each list


def test_a_test_without_variance_is_said_to_be_none(run: Command, scored: Path) -> None:
    weights = scored.with_name("weights.json")
    weights.write_text('{"weights": {"am_scale": -1}}')
    result = run("evaluate", scored, "--weights", weights)  # each list by one error worse
    assert f"{scored}: MAPSSWE: no test: all segments (6) differ by -1 errors" in result.stdout
    assert f"{scored}: bootstrap: no interval: all utterances change alike" in result.stdout
    test = last(result.stdout)["sets"][str(scored)]["mapsswe"]
    assert (test["mean"], test["p"], test["has_variance"]) == (-1.0, 1.0, False)
    same = run("evaluate", scored, "--against", scored)
    assert "no test" not in same.stdout
    assert "no interval" not in same.stdout


def test_several_sets_have_a_row_each_and_one_for_all(run: Command, scored: Path) -> None:
    other = scored.with_name("other.jsonl.gz")
    other.write_bytes(scored.read_bytes())
    result = run("evaluate", scored, other, "--speakers", "odd", "--baseline", "am")
    report = last(result.stdout)
    assert list(report["sets"]) == [str(scored), str(other), "all"]
    assert report["sets"]["all"]["systems"]["oracle"]["utterances"] == 6


def test_utterances_of_several_sets_are_warned_of(run: Command, scored: Path) -> None:
    other = scored.with_name("other.jsonl")
    lines = gzip.decompress(scored.read_bytes()).decode()
    other.write_text(lines)
    (warning,) = run("evaluate", scored, other).stderr.splitlines()
    assert warning.startswith(
        "warning: 6 utterances are in more than one of the sets, such as '10-0'"
    )
    other.write_text(lines.replace('"ref": "the cat sat"', '"ref": "a mat sat"'))
    assert run("evaluate", scored, other).stderr == ""  # other words under the same names
    assert "is given twice; need each set once" in run("evaluate", scored, scored).stderr


def test_lists_without_am_have_no_such_row(run: Command, lists: Path) -> None:
    bare = lists.with_name("bare.jsonl")
    run("rescore", lists, bare, "--first-pass", "total", "--am-scale", "0")
    copy = lists.with_name("copy.jsonl")
    copy.write_bytes(bare.read_bytes())
    sets = last(run("evaluate", bare, copy).stdout)["sets"]
    assert ["am" in report["systems"] for report in sets.values()] == [False] * 3
    refused = run("evaluate", bare, "--baseline", "am")
    assert refused.exit_code == 2
    assert "needs an am_score" in refused.stderr


def test_the_best_am_score_counts_in_lists_that_could_not_be_ranked(
    run: Command, scored: Path
) -> None:
    first, *others = (
        json.loads(line) for line in gzip.decompress(scored.read_bytes()).splitlines()
    )
    (right,) = (one for one in first["hypotheses"] if one["text"] == "the cat sat")
    right["components"]["am"] = 0.0
    first["degraded"] = ["failed"]
    source = scored.with_name("failed.jsonl")
    source.write_text("".join(json.dumps(record) + "\n" for record in (first, *others)))
    systems = last(run("evaluate", source, "--baseline", "am").stdout)["sets"][str(source)][
        "systems"
    ]
    assert (systems["first_pass"]["errors"], systems["am"]["errors"]) == (6, 5)


def test_unusable_choices_end_with_code_2(run: Command, scored: Path) -> None:
    assert "need one of order, am" in run("evaluate", scored, "--baseline", "x").stderr
    weights = scored.with_name("weights.json")
    weights.write_text('{"weights": {"graph_scale": 1}}')
    result = run("evaluate", scored, "--weights", weights)
    assert result.exit_code == 2
    assert "utterance '10-0': /hypotheses/0/graph_score" in result.stderr
    nobody = run("evaluate", scored, "--speakers", "odd", "--speaker-of", "^")
    assert "no speaker is odd" in nobody.stderr
    silent = scored.with_name("silent.jsonl")
    lines = gzip.decompress(scored.read_bytes()).decode()
    silent.write_text(lines.replace('"ref": "the cat sat"', '"ref": ""'))
    assert "no reference words" in run("evaluate", silent).stderr


def test_two_sets_of_weights_are_compared_on_the_same_lists(run: Command, scored: Path) -> None:
    worst = scored.with_name("worst.json")
    worst.write_text('{"weights": {"am_scale": -1}}')
    result = run("evaluate", scored, "--against", scored, "--against-weights", worst)
    assert result.exit_code == 0, result.output
    assert "against the other files" in result.stdout
    report = last(result.stdout)["sets"][str(scored)]
    assert report["systems"]["against"]["errors"] == 12
    errors = report["systems"]["rescored"]["errors"] - 12
    assert report["bootstrap"]["difference"] == pytest.approx(errors / 18)
    same = last(run("evaluate", scored, "--against", scored).stdout)["sets"][str(scored)]
    assert same["mapsswe"]["p"] == 1.0


def test_what_cannot_be_compared_is_refused(run: Command, scored: Path) -> None:
    assert (
        "need 1, one per set"
        in run("evaluate", scored, "--against", scored, "--against", scored).stderr
    )
    assert "needs --against" in run("evaluate", scored, "--against-weights", scored).stderr
    fewer = scored.with_name("fewer.jsonl.gz")
    lines = gzip.decompress(scored.read_bytes()).splitlines(keepends=True)
    fewer.write_bytes(gzip.compress(b"".join(lines[1:])))
    result = run("evaluate", scored, "--against", fewer)
    assert result.exit_code == 2
    assert "has no utterance" in result.stderr
    fewer.write_bytes(gzip.compress(b"".join([*lines, lines[0]])))
    result = run("evaluate", fewer, "--against", fewer)
    assert result.exit_code == 2
    assert "stands there twice; need it once" in result.stderr
