"""`rescore` on lattices: lines as of lists, archives and folders, and rescored lattices."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from quantized_lm.cli import rescore_lattices
from quantized_lm.lattice.files import read_lattices, write_lattices
from quantized_lm.lattice.formats import format_by_name
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.spoken import ArcWeights
from quantized_lm.lattice.symbols import symbols_text
from quantized_lm.lattice_scoring import LatticeRequest, score_lattices
from quantized_lm.scored import read_scored
from tests.fakes import fake_loaded
from tests.quantized_lm.lattice.format_cases import make_lattice

from .conftest import Command

SYMBOLS = {1: "the", 2: "cat", 3: "mat", 4: "sat"}
WORDS = {"a": 2, "b": 3, "c": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three HTK files."""
    path = tmp_path / "lattices"
    path.mkdir()
    for name, word in WORDS.items():
        arcs = [
            (0, 1, [1], -1.5, -0.25),
            (1, 2, [word], -2.25, -0.5),
            (1, 2, [4], -2.0, -1.0),
            (2, 3, [], 0.0, 0.0),
        ]
        lattice = make_lattice(arcs, symbols=SYMBOLS, utterance=name)
        write_lattices(path / f"{name}.slf", [lattice])
    (path / "notes.md").write_text("not a lattice")
    return path


def lines(path: Path) -> list[dict[str, object]]:
    """The records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_becomes_lines_that_evaluate_reads(run: Command, folder: Path) -> None:
    target = folder.parent / "out.jsonl"
    result = run("rescore", folder, target, "--lm-scale", "2", "--graph-scale", "0.5")
    assert result.exit_code == 0, result.output
    assert "1*am + 0.5*graph + 2*lm[tiny]" in result.stderr
    assert "3 utterances" in result.stderr
    assert [one["id"] for one in lines(target)] == list(WORDS)
    for record, scored in zip(lines(target), read_scored(target), strict=True):
        (lattice,) = read_lattices(folder / f"{record['id']}.slf")
        asked = LatticeRequest(lattice, ArcWeights(graph_scale=0.5), 2.0, SearchLimits(num_best=10))
        expected = score_lattices([asked], fake_loaded("tiny"))[0].hypotheses
        best_first = [scored.hypotheses[position] for position in scored.order]
        assert len(best_first) == len(expected)
        assert [one.text for one in best_first] == [one.text for one in expected]
        assert [one.lm["tiny"] for one in best_first] == pytest.approx([one.lm for one in expected])
        hypotheses = record["hypotheses"]
        assert isinstance(hypotheses, list)
        for one in hypotheses:
            parts = one["components"]
            total = parts["am"] + 0.5 * parts["graph"] + 2.0 * parts["lm"]["tiny"]
            assert one["score"] == pytest.approx(total, abs=1e-6)
        assert record["changed"] == (hypotheses[0]["input_rank"] != 1)


def test_an_archive_takes_its_words_from_a_table(run: Command, folder: Path) -> None:
    archive, words = folder.parent / "lats.ark", folder.parent / "words.txt"
    lattices = [read_lattices(path)[0] for path in sorted(folder.glob("*.slf"))]
    write_lattices(archive, lattices)
    table = lattices[0].symbols
    assert table is not None
    target = folder.parent / "out.jsonl"
    result = run("rescore", archive, target)
    assert result.exit_code == 2
    assert "utterance 'a': /symbols: the lattice has ids for words" in result.stderr
    assert not target.exists()
    words.write_text(symbols_text(table))
    result = run("rescore", archive, target, "--symbols", words, "--n-best", "1")
    assert result.exit_code == 0, result.output
    records = lines(target)
    assert [one["id"] for one in records] == list(WORDS)
    assert all(1 <= len(one["hypotheses"]) <= 2 for one in records)  # type: ignore[arg-type]


def test_the_most_arcs_of_a_lattice_may_be_said(run: Command, folder: Path) -> None:
    target = folder.parent / "out.jsonl"
    result = run("rescore", folder, target, "--max-arcs", "3")
    assert result.exit_code == 2
    assert "the lattice has 4 arcs; need at most 3" in result.stderr
    assert run("rescore", folder, target, "--max-arcs", "4").exit_code == 0


@pytest.mark.parametrize("lm_scale", ["20", "-20"])
def test_the_first_pass_is_the_lattice_alone_however_many_are_wanted(
    run: Command, folder: Path, lm_scale: str
) -> None:
    target, texts = folder.parent / "out.jsonl", folder.parent / "text"
    texts.write_text("".join(f"{name} the cat\n" for name in WORDS))
    for n_best in ("1", "2"):
        options = ["--lm-scale", lm_scale, "--n-best", n_best, "--refs", texts]
        assert run("rescore", folder, target, *options).exit_code == 0
        for record, scored in zip(lines(target), read_scored(target), strict=True):
            assert scored.ref == record["ref"] == "the cat"
            assert scored.hypotheses[0].text == "the sat"  # the best by am
            hypotheses = record["hypotheses"]
            assert isinstance(hypotheses, list)
            assert record["changed"] == (hypotheses[0]["text"] != "the sat")
            if n_best == "1":
                assert len(hypotheses) == 1 + bool(record["changed"])
            assert [one["rank"] for one in hypotheses] == list(range(1, len(hypotheses) + 1))
        assert any(record["changed"] for record in lines(target)) == (lm_scale == "20")
        assert run("evaluate", target).exit_code == 0


def test_references_are_of_every_lattice_and_of_no_list(
    run: Command, folder: Path, lists: Path
) -> None:
    target = folder.parent / "out.jsonl"
    result = run("rescore", folder, target, "--refs", lists)
    assert result.exit_code == 2
    assert "a.slf: utterance 'a' has no reference" in result.stderr
    result = run("rescore", lists, target, "--refs", lists)
    assert result.exit_code == 2
    assert "--refs needs lattices" in result.stderr
    assert not target.exists()


def test_rescored_lattices_are_written_in_the_format_that_came_in(
    run: Command, folder: Path
) -> None:
    target, out = folder.parent / "out.jsonl", folder.parent / "rescored"
    result = run(
        "rescore", folder, target, "--lattice-out", out, "--order", "0", "--seeds", "2"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["a.slf", "b.slf", "c.slf"]
    assert "htk does not hold, and so was left out" in result.stderr
    for record in lines(target):
        (lattice,) = read_lattices(out / f"{record['id']}.slf")
        asked = LatticeRequest(lattice, ArcWeights(graph_scale=1.0), 0.0)
        best = score_lattices([asked], fake_loaded("tiny"))[0].hypotheses[0]
        hypotheses = record["hypotheses"]
        assert isinstance(hypotheses, list)
        assert best.text == hypotheses[0]["text"]
        assert best.total == pytest.approx(hypotheses[0]["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("out", "message"),
    [("lattices/notes.md", "is a file; need a folder"), ("none/out", "none is no folder")],
)
def test_a_folder_that_cannot_be_made_is_found_before_anything_is_scored(
    run: Command, folder: Path, out: str, message: str
) -> None:
    target = folder.parent / "out.jsonl"
    result = run("rescore", folder, target, "--lattice-out", folder.parent / out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not target.exists()


def test_a_linked_folder_is_written_whatever_a_killed_run_left(
    run: Command, folder: Path, other_disk: Path
) -> None:
    out = folder.parent / "out"
    (folder.parent / ".out.partial").mkdir()
    result = run("rescore", folder, folder.parent / "out.jsonl", "--lattice-out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in other_disk.iterdir()) == ["a.slf", "b.slf", "c.slf"]


def test_a_folder_that_takes_no_file_is_found_before_anything_is_scored(
    run: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    monkeypatch.setattr(rescore_lattices, "run_all", lambda *_: pytest.fail("scored"))
    target, out = folder.parent / "out.jsonl", folder.parent / "out"
    link = folder.parent / "link"
    link.symlink_to("nowhere")
    for path, message in ((out, "cannot be written (Read-only"), (link, "is a file; need a")):
        result = run("rescore", folder, target, "--lattice-out", path)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith(f"error: {path}: {message}")
        assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [
        (("lattices", "o.jsonl", "--lattice-out", "lattices"), "lattices"),
        (("lattices", "o.jsonl", "--lattice-out", "link"), "link"),
        (("lattices/a.slf", "o.jsonl", "--lattice-out", "lattices"), "lattices/a.slf"),
        (("lattices", "lattices/a.slf"), "lattices/a.slf"),
        (("lattices", "refs", "--refs", "refs"), "refs"),
        (("lattices", "words.txt", "--symbols", "words.txt"), "words.txt"),
    ],
)
def test_what_is_read_is_never_written_over(
    run: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    lost: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("link").symlink_to(folder)
    Path("refs").write_text("".join(f"{name} the cat\n" for name in WORDS))
    Path("words.txt").write_text(symbols_text(SYMBOLS))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = run("rescore", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith(f"error: {lost}: is what is read, and would")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_format_may_be_named(run: Command, folder: Path) -> None:
    source = folder.parent / "lat.1"
    write_lattices(source, read_lattices(folder / "a.slf"), target=format_by_name("htk"))
    target = folder.parent / "out.jsonl"
    result = run("rescore", source, target)
    assert result.exit_code == 2
    assert "lat.1:1: no JSON" in result.stderr
    assert "; lattices need --format, one of k2-json, k2-safe" in result.stderr
    assert run("rescore", source, target, "--format", "htk").exit_code == 0
    assert [one["id"] for one in lines(target)] == ["a"]


def test_an_empty_lattice_of_an_archive_is_a_failed_utterance_if_that_may_be(
    run: Command, folder: Path
) -> None:
    archive, target = folder.parent / "lats.lat.txt", folder.parent / "out.jsonl"
    lattices = [read_lattices(path)[0] for path in sorted(folder.glob("*.slf"))]
    content = format_by_name("kaldi-text").write(lattices)
    archive.write_bytes(b"x \n\n" + content + b"y \n\n")
    words, texts = folder.parent / "words.txt", folder.parent / "text"
    words.write_text(symbols_text(SYMBOLS))
    texts.write_text("".join(f"{name} the cat\n" for name in "xabcy"))
    options = ["--symbols", words, "--refs", texts, "--lattice-out", folder.parent / "rescored"]
    result = run("rescore", archive, target, *options)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "error: utterance 'x': the lattice is empty; --on-error first-pass writes an empty text "
        "for it"
    )
    result = run("rescore", archive, target, *options, "--on-error", "first-pass")
    assert result.exit_code == 0, result.output
    assert "2 utterances could not be ranked" in result.stderr
    records = lines(target)
    assert [one["id"] for one in records] == list("xabcy")
    assert [one["degraded"] for one in records] == [["failed"], [], [], [], ["failed"]]
    assert records[0]["detail"] == "utterance 'x': the lattice is empty; need at least one path"
    failed, *_, last = read_scored(target)
    assert [one.text for one in failed.hypotheses] == [""]
    assert (failed.is_ranked, failed.ref, last.id) == (False, "the cat", "y")
    assert len(list((folder.parent / "rescored").iterdir())) == 3


def test_a_lattice_without_a_finite_path_is_a_failed_utterance_too(
    run: Command, folder: Path
) -> None:
    (folder / "b.slf").write_text("N=2 L=1\nI=0\nI=1 W=the\nJ=0 S=0 E=1 a=-inf\n")
    target = folder.parent / "out.jsonl"
    result = run("rescore", folder, target)
    assert result.exit_code == 2
    assert "utterance 'b': no path of the lattice has a finite score; --on-error" in result.stderr
    assert run("rescore", folder, target, "--on-error", "first-pass").exit_code == 0
    assert [one["degraded"] for one in lines(target)] == [[], ["failed"], []]


def test_a_folder_of_kaldi_is_read_by_the_names_that_it_uses(run: Command, folder: Path) -> None:
    decode, target = folder.parent / "decode", folder.parent / "out.jsonl"
    (decode / "log").mkdir(parents=True)
    (decode / "num_jobs").write_text("2\n")
    (folder.parent / "words.txt").write_text(symbols_text(SYMBOLS))
    for job, name in enumerate(WORDS, start=1):
        packed = decode / f"lat.{job}.gz"
        write_lattices(
            packed, read_lattices(folder / f"{name}.slf"), target=format_by_name("kaldi-binary")
        )
    result = run("rescore", decode, target, "--symbols", folder.parent / "words.txt")
    assert result.exit_code == 2
    assert "such as Kaldi's lat.1.gz, need --format" in result.stderr
    options = ["--symbols", folder.parent / "words.txt", "--format", "kaldi-binary"]
    result = run("rescore", decode, target, *options)
    assert result.exit_code == 0, result.output
    assert [one["id"] for one in lines(target)] == list(WORDS)
    for path in decode.glob("lat.*"):
        path.unlink()
    result = run("rescore", decode, target, *options)
    assert "has no file lat.* or *.lat* or *.gz or *.ark of kaldi-binary" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "http://127.0.0.1:1"], "post lattices to /v1/rescore/lattice"),
        (["--first-pass", "order"], "--first-pass needs n-best lists, and IN is lattices"),
        (["--engine", "ray"], "--engine needs n-best lists"),
        (["--workers", "5"], "--workers needs n-best lists"),
        (["--order", "1"], "order is 1; need 2 or more"),
        (["--order", "3000000000"], "order is 3000000000; need 2 or more, at most 2147483647"),
        (["--seeds", f"{2**64}"], f"seeds is {2**64}; need 1 or more, at most {2**62}"),
        (["--n-best", f"{2**64}"], f"num_best is {2**64}; need 1 or more, at most {2**62}"),
        (["--format", "mp3"], "lattice format is 'mp3'"),
        (["--preset", "nemo:alpha=0.5,beta=0.25"], "/char_bonus: char_bonus is 0.25"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Command, folder: Path, options: list[str], message: str
) -> None:
    result = run("rescore", folder, folder.parent / "out.jsonl", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_weights_file_without_this_lm_ranks_without_it(run: Command, folder: Path) -> None:
    target, weights = folder.parent / "out.jsonl", folder.parent / "weights.json"
    weights.write_text('{"weights": {"graph_scale": 0.5, "lm_scales": {"other": 0}}}')
    result = run("rescore", folder, target, "--weights", weights)
    assert result.exit_code == 0, result.output
    for record in lines(target):
        assert record["changed"] is False
        hypotheses = record["hypotheses"]
        assert isinstance(hypotheses, list)
        for one in hypotheses:
            parts = one["components"]
            assert one["score"] == pytest.approx(parts["am"] + 0.5 * parts["graph"], abs=1e-6)


def test_a_weights_file_that_counts_another_lm_is_refused(run: Command, folder: Path) -> None:
    target, weights = folder.parent / "out.jsonl", folder.parent / "weights.json"
    weights.write_text('{"weights": {"lm_scales": {"tiny": 9.5, "other": 5}}}')
    result = run("rescore", folder, target, "--weights", weights)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "error: /lm_scales/other: weight of LM 'other' is 5; need 0, as only 'tiny' is loaded"
    )
    assert not target.exists()


def test_a_bad_file_is_found_before_anything_is_scored(run: Command, folder: Path) -> None:
    (folder / "d.slf").write_text("N=2 L=1\nI=0\nI=1\nJ=0 S=0 E=7\n")
    target = folder.parent / "out.jsonl"
    result = run("rescore", folder, target)
    assert result.exit_code == 2
    assert "d.slf" in result.stderr
    assert not target.exists()


def test_half_a_surrogate_is_found_before_anything_is_scored(run: Command, folder: Path) -> None:
    source, target = folder / "d.k2.json", folder.parent / "out.jsonl"
    record = {"arcs": [[0, 1, 1, -1.0], [1, 2, -1, 0]], "symbols": {"1": "a\ud83d"}}
    source.write_text(json.dumps(record))
    result = run("rescore", folder, target)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "error: utterance 'd': word is 'a\\ud83d', which has half a surrogate; need Unicode"
    )
    assert not target.exists()
