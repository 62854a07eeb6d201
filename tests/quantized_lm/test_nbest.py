"""Both shapes of a line, both kinds of file, and messages that name the place of a fault."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import pytest

from quantized_lm.errors import DataError
from quantized_lm.nbest import Hypothesis, Utterance, open_replace, read_records, read_utterances

SERVICE = {
    "id": "u1",
    "ref": "a b",
    "final": False,
    "context": {"text": ["before"]},
    "hypotheses": [
        {"text": "a b", "am_score": -1, "graph_score": -2.5, "extra": {"ctc": -3.0}},
        {"text": "", "am_score": None, "lm_score": -4.0},
    ],
}
FIELDS = {
    "utt": "u2",
    "ref": "a",
    "dur": 0.8,
    "hyps": [{"text": "a", "am": -1.0, "lm": -2.0, "total": -17.0}, {"text": "a"}],
}


def write(path: Path, *records: object) -> Path:
    text = "\n\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_by_order_only_the_rank_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "lists.jsonl", SERVICE, FIELDS)
    for utterance in read_utterances(path, first_pass="order"):
        scores = [(h.am_score, h.graph_score) for h in utterance.hypotheses]
        assert scores == [(0.0, None), (-math.log(2), None)]
    assert utterance.hypotheses[0].extra == {"am": -1.0, "lm": -2.0, "total": -17.0}


@pytest.mark.parametrize("name", ["lists.jsonl", "lists.jsonl.gz"])
def test_both_shapes_are_read_plain_and_packed(tmp_path: Path, name: str) -> None:
    first, second = read_utterances(write(tmp_path / name, SERVICE, FIELDS))
    assert first == Utterance(
        id="u1",
        hypotheses=(
            Hypothesis("a b", -1.0, -2.5, {"ctc": -3.0}),
            Hypothesis("", None, -4.0),
        ),
        ref="a b",
        context=("before",),
        final=False,
    )
    assert second.hypotheses == (
        Hypothesis("a", -1.0, None, {"lm": -2.0, "total": -17.0}),
        Hypothesis("a"),
    )
    assert (second.id, second.ref, second.context, second.final) == ("u2", "a", (), True)


@pytest.mark.parametrize(
    ("first_pass", "expected"),
    [
        ("total", Hypothesis("a", -17.0, None, {"am": -1.0, "lm": -2.0})),
        ("am+lm", Hypothesis("a", -1.0, -2.0, {"total": -17.0})),
    ],
)
def test_the_first_pass_is_the_fields_asked_for(
    tmp_path: Path, first_pass: str, expected: Hypothesis
) -> None:
    path = write(tmp_path / "lists.jsonl", FIELDS)
    assert next(read_utterances(path, first_pass=first_pass)).hypotheses[0] == expected


def hypotheses(**changes: object) -> dict[str, object]:
    return {"id": "u", "hypotheses": [{"text": "a"}, {"text": "b", **changes}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (hypotheses(am_score="x"), ":1: /hypotheses/1/am_score: is 'x'; need a number"),
        (hypotheses(am_score=True), "/hypotheses/1/am_score: is True"),
        (hypotheses(am_scroe=1.0), "/hypotheses/1/am_scroe: is not known; need one of text"),
        (hypotheses(graph_score=1.0, lm_score=1.0), "another name of graph_score"),
        (hypotheses(extra=[1]), r"/hypotheses/1/extra: is \[1\]"),
        (hypotheses(extra={"a/b": "x"}), "/hypotheses/1/extra/a~1b"),
        (hypotheses(text=3), "/hypotheses/1/text: is 3; need a string"),
        ({"id": "u", "hypotheses": []}, "/hypotheses: is no list of objects, or empty"),
        ({"id": "u", "hypotheses": ["a"]}, "/hypotheses/0: is 'a'; need an object"),
        ({"hypotheses": [{"text": "a"}]}, "/id: is None"),
        ({**hypotheses(), "final": 1}, "/final: is 1"),
        ({**hypotheses(), "ref": 1}, "/ref: is 1"),
        ({**hypotheses(), "context": {"text": [1]}}, "/context: is not of the form"),
        ({**hypotheses(), "context": "before"}, "/context: is not of the form"),
        ({"utt": "u", "hyps": [{"text": "a", "am": "x"}]}, "/hyps/0/am: is 'x'"),
        ({"utt": "u", "hyps": [{"text": "a", "total": None}]}, "/hyps/0/total: is None"),
        ({"text": "a"}, "keys are text; need 'hypotheses' or 'hyps'"),
        ('{"id": "u", "hypotheses": [{"text": "a", "am_score": NaN}]}', "holds NaN"),
        (
            hypotheses(text="x\ud83d"),
            r"/hypotheses/1/text: is 'x\\ud83d', which has half a surrogate",
        ),
        (hypotheses(extra={"\udc00": 1}), r"/hypotheses/1/extra: is '\\udc00', which has half"),
        ({**hypotheses(), "context": {"text": ["a", "\ud83d"]}}, "/context/text/1: is"),
        (
            '{"id": "u", "hypotheses": [{"text": "a", "am_score": -1e999}]}',
            "/hypotheses/0/am_score: is not finite as a float64; need a number between",
        ),
        (hypotheses(extra={"ctc": 10**400}), "/hypotheses/1/extra/ctc: is not finite as a float64"),
        ('{"id": ' + "1" * 5000 + "}", "no JSON .Exceeds the limit"),
        ("[" * 100_000, "no JSON .*recursion"),
        ("[1]", "is a JSON list; need an object"),
        ("{", "no JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "lists.jsonl", line)
    with pytest.raises(DataError, match=message) as caught:
        list(read_utterances(path))
    assert str(caught.value).startswith(f"{path}:1: ")


def test_both_halves_of_a_surrogate_pair_are_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "lists.jsonl", hypotheses(text="\U0001f600"))
    assert "\\ud83d\\ude00" in path.read_text()
    assert next(read_utterances(path)).hypotheses[1].text == "\U0001f600"


@pytest.mark.parametrize("name", ["lists.jsonl", "lists.jsonl.gz"])
def test_packed_is_what_begins_so_and_a_byte_order_mark_is_no_text(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    expected = list(read_utterances(write(tmp_path / "plain.jsonl", FIELDS)))
    lines = b"\xef\xbb\xbf" + (tmp_path / "plain.jsonl").read_bytes().replace(b"\n", b"\r\n")
    for content in (lines, gzip.compress(lines)):
        path.write_bytes(content)
        assert list(read_utterances(path)) == expected


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read \(No such file or dir"):
        list(read_utterances(tmp_path / "absent.jsonl"))
    whole = gzip.compress(b"".join(b'{"utt": "%d"}\n' % i for i in range(9999)))
    packed = tmp_path / "lists.jsonl.gz"
    for damaged in (whole[: len(whole) // 2], whole[:10] + b"\xff" * 64):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            for _ in read_records(packed):
                pass
    with pytest.raises(DataError, match="first pass is 'lm'; need one of am, total"):
        list(read_utterances(packed, first_pass="lm"))


def fail_half_way(path: Path) -> None:
    with open_replace(path) as handle:
        handle.write("half")
        raise KeyError


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_file_appears_only_when_it_is_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with open_replace(path) as handle:
        handle.write("gödel\n")
        assert not path.exists()
    written = path.read_bytes()
    text = gzip.decompress(written) if name.endswith(".gz") else written
    assert text.decode() == "gödel\n"
    with pytest.raises(KeyError):
        fail_half_way(path)
    assert path.read_bytes() == written
    with open_replace(path) as handle:
        handle.write("gödel\n")
    assert path.read_bytes() == written  # the same lines, the same bytes
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="cannot be written"),
        open_replace(tmp_path / "absent" / "out.jsonl"),
    ):
        pass


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_lines_go_through_links_and_into_pipes(tmp_path: Path, name: str) -> None:
    whole, link, fifo = tmp_path / f"real.{name}", tmp_path / f"link.{name}", tmp_path / name
    link.symlink_to(whole)
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for path in (link, fifo):
        with open_replace(path) as handle:
            handle.write("gödel\n")
    assert link.is_symlink()
    assert os.read(reading, 999) == whole.read_bytes()
    os.close(reading)
    assert sorted(tmp_path.iterdir()) == sorted([whole, link, fifo])


def test_a_disk_that_is_full_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    path = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="cannot be written.*No space"), open_replace(path) as lines:
        lines.write("a")
    assert not list(tmp_path.iterdir())


def test_every_real_list_can_be_read(shared_data: Path) -> None:
    counts = {
        path.name.removesuffix(".jsonl.gz"): sum(1 for _ in read_utterances(path))
        for path in sorted((shared_data / "nbest").glob("*.jsonl.gz"))
    }
    assert counts["ls_test_clean.w2v2_base960h_4gram"] == 2620
    assert counts["swbd_eval.sri_decipher"] == 64
    assert counts["atis_train.whisper"] == 3964
