"""`convert`: files, archives and folders; what is left out is said; a bad input writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantized_lm.cli import convert
from quantized_lm.files import folder_beside
from quantized_lm.lattice.files import read_lattices, write_lattices

from .conftest import Command

SLF = """VERSION=1.0
UTTERANCE={name}
lmscale=9.5
N=3 L=2
I=0 t=0 W=!NULL
I=1 t=0.5 W={word}
I=2 t=1 W=!NULL
J=0 S=0 E=1 a=-1.5 l=-0.1
J=1 S=1 E=2 a=-2 l=-0.25
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two HTK files."""
    path = tmp_path / "htk"
    path.mkdir()
    for name, word in (("a", "hello"), ("b", "there")):
        (path / f"{name}.slf").write_text(SLF.format(name=name, word=word))
    (path / "notes.md").write_text("not a lattice")
    return path


def test_one_file_becomes_another_and_what_is_left_out_is_said(run: Command, folder: Path) -> None:
    target = folder / "a.k2.json"
    result = run("convert", folder / "a.slf", target)
    assert result.exit_code == 0, result.output
    first, second = result.stderr.splitlines()
    assert first == "k2-json does not hold, and so was left out: header lmscale, state time_s"
    assert second == f"{target} is written: 1 lattices, 2 arcs"
    record = json.loads(target.read_bytes())
    assert record["arcs"] == [[0, 1, 1, -1.60000002], [1, 2, -1, -2.25]]
    assert record["symbols"] == {"1": "hello"}


def test_empty_lattices_of_an_archive_are_left_out_by_name(run: Command, tmp_path: Path) -> None:
    source, target = tmp_path / "lats.lat.txt", tmp_path / "lats.ark"
    source.write_text("u1 \n0 1 5 1,1,\n1 0,0,\n\nu2 \n\n")
    result = run("convert", source, target)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == "1 lattices are empty and left out: u2"
    assert [one.utterance for one in read_lattices(target)] == ["u1"]


def test_a_folder_becomes_an_archive_with_one_table_and_a_folder_again(
    run: Command, folder: Path
) -> None:
    archive, words = folder.parent / "lats.ark.gz", folder.parent / "words.txt"
    result = run("convert", folder, archive, "--symbols-out", words)
    assert result.exit_code == 0, result.output
    assert "symbols" not in result.stderr
    assert words.read_text().splitlines() == ["<eps> 0", "hello 1", "there 2"]
    again = folder.parent / "again"
    result = run("convert", archive, again, "--to", "htk", "--symbols", words)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in again.iterdir()) == ["a.slf", "b.slf"]
    for name in ("a", "b"):
        (before,), (after,) = (read_lattices(one / f"{name}.slf") for one in (folder, again))
        assert after.am.tolist() == before.am.tolist()
        assert sorted(after.symbols or {}) == [1]


def test_a_table_of_the_target_s_needs_no_entry_for_a_node_without_a_word(
    run: Command, folder: Path
) -> None:
    words = folder.parent / "words.txt"
    words.write_text("<eps> 0\nhello 7\nthere 8\n")
    target = folder / "a.lat.txt"
    result = run("convert", folder / "a.slf", target, "--symbols", words)
    assert result.exit_code == 0, result.output
    assert target.read_text().splitlines()[1].split() == ["0", "1", "7", "0.1,1.5,"]


def test_formats_may_be_named_where_suffixes_say_nothing(run: Command, folder: Path) -> None:
    source = folder / "lat.1"
    (folder / "a.slf").rename(source)
    assert run("convert", source, folder / "x", "--from", "htk", "--to", "k2-text").exit_code == 0
    assert (folder / "x").read_text().endswith("\n2\n")


def test_an_existing_folder_gets_a_file_for_each_lattice(run: Command, folder: Path) -> None:
    target = folder.parent / "out"
    target.mkdir()
    assert run("convert", folder, target, "--to", "kaldi-text").exit_code == 0
    assert sorted(path.name for path in target.iterdir()) == ["a.lat.txt", "b.lat.txt"]


def test_a_slash_at_the_end_means_a_folder(run: Command, folder: Path) -> None:
    for target in ("one", "one.slf"):
        result = run("convert", folder / "a.slf", f"{folder.parent / target}/", "--to", "htk")
        assert result.exit_code == 0, result.output
        assert [path.name for path in (folder.parent / target).iterdir()] == ["a.slf"]


def test_a_bad_lattice_in_a_folder_is_one_line_and_writes_nothing(
    run: Command, folder: Path
) -> None:
    bad = folder / "b.slf"
    bad.write_text(bad.read_text().replace("a=-2", "a=x"))
    before = sorted(folder.parent.iterdir())
    for target in ("out.ark", "out"):
        result = run("convert", folder, folder.parent / target, "--to", "kaldi-text")
        assert result.exit_code == 2
        assert result.stderr == (
            f"error: /arcs/1: {bad}: line 9: arc 1 has a= 'x'; need a number\n"
        )
    assert sorted(folder.parent.iterdir()) == before


def test_ids_that_are_paths_name_files_by_their_last_part(run: Command, folder: Path) -> None:
    for name in ("a", "b"):
        slf = SLF.format(name=f"/data/plp/{name}.1.plp", word="hello")
        (folder / f"{name}.slf").write_text(slf)
    target = folder.parent / "out"
    assert run("convert", folder, target, "--to", "htk").exit_code == 0
    assert sorted(path.name for path in target.iterdir()) == ["a.1.slf", "b.1.slf"]
    assert read_lattices(target / "a.1.slf")[0].utterance == "/data/plp/a.1.plp"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x\\\\y", "b"), "'x\\\\y', which cannot be the name of a file"),
        (("/data/..", "b"), "'/data/..', which cannot be"),
        (("b", "b"), "'b' is there twice"),
        (("x/b.plp", "b"), "'b' and 'x/b.plp' are one name"),
    ],
)
def test_ids_that_cannot_name_files_are_refused(
    run: Command, folder: Path, names: tuple[str, str], message: str
) -> None:
    for old, name in zip(("a", "b"), names, strict=True):
        (folder / f"{old}.slf").write_text(SLF.format(name=name, word="hello"))
    out, lists = folder.parent / "out", folder.parent / "lists.jsonl"
    for command in (
        ("convert", folder, out, "--to", "k2-json"),
        ("rescore", folder, lists, "--lattice-out", out),  # and that before the work
    ):
        result = run(*command)
        assert result.exit_code == 2
        assert message in result.stderr
        assert not out.exists()
        assert not lists.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.ark", "x.slf"), "cannot be read"),
        (("htk/a.slf", "x"), "no lattice format ends so"),
        (("htk/a.slf", "x.ark", "--from", "k3"), "need one of k2-json"),
        (("htk/a.slf", "none/x.ark"), "cannot be written"),
        (("htk/a.slf", "none/x", "--to", "htk"), "cannot be written"),
        (("htk", "none/x", "--to", "htk"), "cannot be written"),
        (("htk", "x.slf"), "holds one lattice; got 2"),
        (("htk/a.slf", "x.ark", "--max-arcs", "1"), "2 arcs; need at most 1"),
        (("htk/a.slf", "x.ark", "--words-on", "both"), "need one of auto"),
        (("htk/a.slf", "x.ark", "--symbols", "htk/notes.md"), 'need "word id"'),
        (("htk/a.slf", "x.ark", "--symbols-out", "none/words.txt"), "cannot be written"),
        (("empty", "x.ark"), "has no file of a lattice"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(
    run: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    result = run("convert", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path.name for path in folder.parent.iterdir()} == {"htk", "empty"}


def test_ids_without_words_have_no_table_to_write(run: Command, folder: Path) -> None:
    archive, words = folder / "a.ark", folder / "words.txt"
    assert run("convert", folder / "a.slf", archive).exit_code == 0
    result = run("convert", archive, folder / "b.lat.txt", "--symbols-out", words)
    assert result.exit_code == 2
    assert "no words to write" in result.stderr
    assert not (folder / "b.lat.txt").exists()


def test_a_folder_that_is_a_link_to_another_disk_is_written(
    run: Command, folder: Path, other_disk: Path
) -> None:
    result = run("convert", folder, folder.parent / "out", "--to", "htk")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in other_disk.iterdir()) == ["a.slf", "b.slf"]
    assert {path.name for path in folder.parent.iterdir()} == {"htk", "disk", "out"}


def test_what_a_killed_run_left_is_in_nobody_s_way_and_is_not_read(
    run: Command, folder: Path
) -> None:
    out = folder.parent / "out"
    stale = folder.parent / ".out.partial"
    stale.mkdir()
    for _ in range(2):  # beside, and then inside
        assert run("convert", folder, f"{out}/", "--to", "htk").exit_code == 0
    with folder_beside(out) as left:
        (left / "c.slf").write_text((out / "a.slf").read_text())
        result = run("convert", out, folder.parent / "lats.ark")
        assert result.exit_code == 0, result.output
        assert [one.utterance for one in read_lattices(folder.parent / "lats.ark")] == ["a", "b"]
    assert sorted(path.name for path in out.iterdir()) == ["a.slf", "b.slf"]
    assert stale.is_dir()


def test_runs_at_one_time_do_not_touch_each_other_s_files(
    run: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = folder.parent / "out", write_lattices

    def run_beside(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        monkeypatch.setattr(convert, "write_lattices", write)
        assert run("convert", folder / "b.slf", f"{out}/", "--to", "k2-json").exit_code == 0

    monkeypatch.setattr(convert, "write_lattices", run_beside)
    result = run("convert", folder, f"{out}/", "--to", "htk")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["a.slf", "b.k2.json", "b.slf"]


def test_the_folder_that_is_made_is_open_to_others_as_any_other(run: Command, folder: Path) -> None:
    out, plain = folder.parent / "out", folder.parent / "plain"
    plain.mkdir()
    assert run("convert", folder, f"{out}/", "--to", "htk").exit_code == 0
    assert out.stat().st_mode == plain.stat().st_mode
    assert (out / "a.slf").stat().st_mode == (folder / "a.slf").stat().st_mode


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [
        (("in.ark", "o.k2.json", "--symbols", "w.txt", "--symbols-out", "in.ark"), "in.ark"),
        (("in.ark", "o.k2.json", "--symbols", "w.txt", "--symbols-out", "w.txt"), "w.txt"),
        (("in.ark", "w.txt", "--symbols", "w.txt", "--to", "kaldi-text"), "w.txt"),
        (("in.ark", "in.ark"), "in.ark"),
        (("link.ark", "in.ark"), "in.ark"),
        (("htk", "htk", "--to", "htk"), "htk/a.slf"),
        (("htk/b.slf", "htk", "--to", "htk"), "htk/b.slf"),
        (("htk", "o.ark", "--symbols-out", "htk/a.slf"), "htk/a.slf"),
        (("htk", "o.ark", "--symbols-out", "o.ark"), "o.ark"),
        (("htk", "o", "--to", "k2-json", "--symbols-out", "o/a.k2.json"), "o/a.k2.json"),
    ],
)
def test_what_is_read_or_was_just_written_is_never_written_over(
    run: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    lost: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    assert run("convert", "htk/a.slf", "in.ark", "--symbols-out", "w.txt").exit_code == 0
    Path("link.ark").symlink_to("in.ark")
    Path("o").mkdir()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = run("convert", *arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {lost}: ")
    assert "would be lost; need another name" in line
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_another_format_may_stand_beside_what_is_read(run: Command, folder: Path) -> None:
    assert run("convert", folder, folder, "--to", "k2-json").exit_code == 0
    assert {path.suffix for path in folder.iterdir()} == {".slf", ".json", ".md"}


def test_the_folder_one_is_in_is_a_folder_too(
    run: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "here").mkdir()
    monkeypatch.chdir(folder.parent / "here")
    assert run("convert", folder, ".", "--to", "htk").exit_code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["a.slf", "b.slf"]
