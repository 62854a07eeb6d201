"""MAPSSWE against NIST's own tool, and the bootstrap interval."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from quantized_lm.errors import ShapeError
from quantized_lm.nbest import read_utterances
from quantized_lm.significance import bootstrap_interval, mapsswe, segment_differences
from quantized_lm.wer import slot_errors


@pytest.mark.parametrize(
    ("reference", "first", "second", "expected"),
    [
        ("a b c d", "a b c d", "a b c d", []),
        ("a b c d e f", "x b c d e f", "a b c d e x", [1, -1]),  # two good words part them
        ("a b c d e", "x b c d e", "a b x d e", [0]),  # b alone... does not part them
        ("a b c d e", "x b c d e", "a b c x e", [1, -1]),
        ("a b", "a b c", "a b", [1]),
        ("a b c d", "x b q c d", "a b c d", [2]),  # an insertion between good words
        ("a b c", "x b c", "y b c", [0]),  # both wrong: a segment without a difference
    ],
)
def test_segments_end_at_two_words_both_have_right(
    reference: str, first: str, second: str, expected: list[int]
) -> None:
    assert segment_differences(reference, first, second) == expected
    assert segment_differences(reference, second, first) == [-one for one in expected]


def test_a_system_is_no_better_than_itself() -> None:
    test = mapsswe(["a b", "c d"], ["a x", "c d"], ["a x", "c d"])
    assert (test.segments, test.z, test.p) == (1, 0.0, 1.0)
    assert mapsswe(["a"], ["a"], ["a"]).p == 1.0


def test_z_is_the_mean_over_its_standard_error() -> None:
    references = ["a b c"] * 4
    first = ["x b c", "x b c", "x b c", "a b c"]
    second = ["a b c", "a b c", "a b c", "x b c"]
    test = mapsswe(references, first, second)
    assert (test.segments, test.mean) == (4, 0.5)
    assert test.z == pytest.approx(0.5 / (1.0 / 2.0))  # differences 1, 1, 1, -1: deviation 1
    assert test.p == pytest.approx(0.3173105, abs=1e-6)


def test_without_variance_there_is_no_test_and_the_remark_says_so() -> None:
    better = mapsswe(["a b c"] * 3, ["x b c"] * 3, ["a b c"] * 3)
    assert (better.segments, better.mean, better.p, better.has_variance) == (3, 1.0, 1.0, False)
    assert better.remark == (
        "no test: all segments (3) differ by +1 errors, so their variance is zero, and p 1 says "
        "nothing"
    )
    assert mapsswe(["a b c"], ["a b c"], ["x b c"]).remark.startswith("no test: all segments (1)")
    assert mapsswe(["a b c"] * 2, ["x b c"] * 2, ["x b c"] * 2).remark == ""  # equal: p 1 is true
    assert mapsswe(["a b c"] * 2, ["x b c"] * 2, ["a b c", "x b c"]).remark == ""


def test_answers_of_another_number_are_refused() -> None:
    with pytest.raises(ShapeError, match="2 references, 1 and 2"):
        mapsswe(["a", "b"], ["a"], ["a", "b"])
    with pytest.raises(ShapeError, match="0 reference words"):
        bootstrap_interval(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    held = 0
    for trial in range(200):
        first, second = generator.poisson(2.0, 150), generator.poisson(1.8, 150)
        found = bootstrap_interval(
            first, second, np.full(150, 20), replications=500, level=0.9, seed=trial
        )
        held += found.low <= -0.01 <= found.high
    assert 165 <= held <= 195


def test_the_interval_repeats_itself_and_sees_a_plain_gain() -> None:
    words = np.full(100, 10)
    first, second = np.full(100, 3), np.full(100, 3) - (np.arange(100) % 4 == 0)
    found = bootstrap_interval(first, second, words, seed=1)
    assert found == bootstrap_interval(first, second, words, seed=1)
    assert found.difference == pytest.approx(-0.025)
    assert found.low < -0.025 < found.high < 0.0
    assert found.probability_better == 1.0
    assert found.remark == ""


def test_an_interval_without_width_is_said_to_be_none() -> None:
    one = bootstrap_interval(np.array([3]), np.array([2]), np.array([7]))
    assert one.low == one.high == one.difference == -1 / 7
    assert one.remark.startswith("no interval: all utterances change alike, or there is one")
    words = np.array([3, 6, 9])
    assert bootstrap_interval(words, words // 3, words).remark == one.remark
    assert bootstrap_interval(words, words, words).remark == ""  # equal: that is no chance


def test_mapsswe_agrees_with_sc_stats_on_real_lists(shared_data: Path, tmp_path: Path) -> None:
    if shutil.which("sctk") is None:
        pytest.skip("sctk is not installed (Debian package sctk): no sc_stats to compare with")
    path = shared_data / "nbest" / "ls_test_clean.w2v2_base960h_4gram.jsonl.gz"
    rows = []
    for by_am in read_utterances(path):
        scores = [hypothesis.am_score for hypothesis in by_am.hypotheses]
        answers = (
            by_am.hypotheses[int(np.argmax(np.array(scores, float)))].text,
            by_am.hypotheses[0].text,
        )
        # sc_stats drops the second system's insertions after the last word; we count them.
        if slot_errors(str(by_am.ref), answers[1])[-1] == 0:
            rows.append((by_am.id, str(by_am.ref), *answers))
    for column, name in enumerate(("ref", "first", "second"), start=1):
        lines = (f"{row[column]} ({row[0]})\n" for row in rows)
        (tmp_path / f"{name}.trn").write_text("".join(lines))
    sclite = "sctk sclite -r ref.trn trn -h first.trn trn first -h second.trn trn second"
    aligned = subprocess.run(
        [*sclite.split(), "-i", "spu_id", "-o", "sgml", "stdout"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    ).stdout
    subprocess.run(
        ["sctk", "sc_stats", "-p", "-t", "mapsswe", "-v", "-n", "theirs"],
        cwd=tmp_path,
        input=aligned,
        capture_output=True,
        check=True,
    )
    report = (tmp_path / "theirs.stats.mapsswe").read_text()
    line = next(line for line in report.splitlines() if line.startswith("MTCH_PR_RESULTS"))
    segments = re.search(r"# segs: (\d+)", line)
    z = re.search(r"Z Stat: ([-\d.]+)", line)
    assert segments
    assert z
    ours = mapsswe(*(list(column) for column in list(zip(*rows, strict=True))[1:]))
    assert ours.segments == int(segments[1])
    assert ours.z == pytest.approx(float(z[1]), abs=6e-4)
