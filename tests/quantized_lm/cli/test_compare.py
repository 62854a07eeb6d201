"""`compare`: lattices and lists of the same utterances, by their ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import TinyRun

from .conftest import Command

SLF = """UTTERANCE={name}
N=4 L=4
I=0 t=0 W=!NULL
I=1 t=0.5 W=the
I=2 t=1 W={first}
I=3 t=1 W={second}
I=4 t=2 W=!NULL
J=0 S=0 E=1 a=-1
J=1 S=1 E=2 a=-2
J=2 S=1 E=3 a=-2.5
J=3 S=2 E=4 a=0
J=4 S=3 E=4 a=0
"""
PAIRS = (("cat", "king"), ("river", "dog"), ("train", "letter"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three lattices and the lists of their utterances."""
    lattices = tmp_path / "lattices"
    lattices.mkdir()
    lines = []
    for number, (first, second) in enumerate(PAIRS):
        name = f"u{number}"
        slf = SLF.replace("N=4 L=4", "N=5 L=5").format(name=name, first=first, second=second)
        (lattices / f"{name}.slf").write_text(slf)
        hyps = [{"text": f"the {word}", "am": am} for word, am in ((first, -3), (second, -3.5))]
        lines.append(json.dumps({"utt": name, "ref": f"the {second}", "hyps": hyps}))
    (tmp_path / "lists.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_table_the_tests_and_one_json_object(
    run: Command, folder: Path, tiny_run: TinyRun
) -> None:
    result = run(
        "compare", folder / "lattices", "--lists", folder / "lists.jsonl",
        "--model", tiny_run.artifact, "--size", 1, "--size", 2,
        "--lm-scale", 0.5, "--word-bonus", 0,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 utterances, 6 words" in " ".join(result.stdout.split())
    assert result.stdout.count("MAPSSWE") == 3
    record = json.loads(result.stdout.splitlines()[-1])
    names = [one["name"] for one in record["systems"]]
    assert names == ["1-best", "2-best", "decoder's list", "lattice"]
    assert record["wer_am_alone"] == record["systems"][0]["wer"] == 0.5
    assert record["systems"][1]["wer"] == record["systems"][3]["wer"]


def test_lattices_of_ids_take_their_words_from_a_table(
    run: Command, folder: Path, tiny_run: TinyRun
) -> None:
    archive, words = folder / "lat.1.gz", folder / "words.txt"
    assert run("convert", folder / "lattices", archive, "--to", "kaldi-binary",
               "--symbols-out", words).exit_code == 0  # fmt: skip
    given = ["--format", "kaldi-binary", "--symbols", words]
    result = run(
        "compare", archive, "--lists", folder / "lists.jsonl", "--model", tiny_run.artifact,
        "--size", 1, "--lm-scale", 0.5, "--word-bonus", 0, *given,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["utterances"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"utt": "u', '"utt": "v'), "need ids that agree"),
        (lambda text: text.replace('"ref"', '"note"'), "has no ref"),
    ],
)
def test_lists_that_do_not_fit_are_refused_in_one_line(
    run: Command, folder: Path, change: object, message: str
) -> None:
    path = folder / "lists.jsonl"
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    result = run("compare", folder / "lattices", "--lists", path)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_a_lattice_of_more_arcs_than_allowed_is_refused(run: Command, folder: Path) -> None:
    lists = folder / "lists.jsonl"
    result = run("compare", folder / "lattices", "--lists", lists, "--max-arcs", 4)
    assert (result.exit_code, "5 arcs; need at most 4" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0"], "--size is 0; need 1 or more"),
        (["--size", "10", "--size", "-3"], "--size is -3; need 1 or more"),
        (["--size", 2**64], f"--size is {2**64}; need 1 or more, at most {2**62}"),
        (["--lm-scale", "nan"], "--lm-scale is nan; need a finite number"),
        (["--lm-scale", "inf"], "--lm-scale is inf"),
        (["--word-bonus", "-inf"], "--word-bonus is -inf"),
    ],
)
def test_numbers_that_cannot_be_are_one_line(
    run: Command, folder: Path, options: list[object], message: str
) -> None:
    result = run("compare", folder / "lattices", "--lists", folder / "lists.jsonl", *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")


def test_an_utterance_is_counted_once(run: Command, folder: Path) -> None:
    lists, more = folder / "lists.jsonl", folder / "more.jsonl"
    more.write_text(lists.read_text().splitlines()[1])
    lattices = folder / "lattices"
    for arguments, where in (
        ((lattices, "--lists", lists, "--lists", more), "--lists"),
        ((lattices, lattices / "u1.slf", "--lists", lists), "LATTICES"),
    ):
        result = run("compare", *arguments)
        assert result.exit_code == 2
        assert result.stderr == (
            f"error: {where}: utterance 'u1' stands there twice; need it once\n"
        )


def test_lattices_without_a_list_are_counted_out_loud(
    run: Command, folder: Path, tiny_run: TinyRun
) -> None:
    lists = folder / "lists.jsonl"
    lists.write_text("\n".join(lists.read_text().splitlines()[:2]))
    result = run(
        "compare", folder / "lattices", folder / "lattices" / "u2.slf", "--lists", lists,
        "--model", tiny_run.artifact, "--size", 1, "--lm-scale", 0.5, "--word-bonus", 0,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == "warning: 2 lattices have no list and are left out\n"
    assert json.loads(result.stdout.splitlines()[-1])["utterances"] == 2
