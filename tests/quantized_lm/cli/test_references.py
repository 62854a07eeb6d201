"""What was said in lattices, out of lists and of lines of text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from quantized_lm.cli.references import read_references
from quantized_lm.errors import DataError

from .conftest import LISTS


def test_lists_of_either_shape_and_rescored_ones_give_their_refs(
    tmp_path: Path, lists: Path, scored: Path
) -> None:
    expected = {one["utt"]: one["ref"] for one in LISTS}
    assert read_references(lists) == read_references(scored) == expected
    ours = tmp_path / "ours.jsonl.gz"
    ours.write_bytes(
        gzip.compress(
            b'\n{"id": "a", "ref": "the cat", "hypotheses": [{"text": "a cat"}]}\n'
            b'{"id": "b", "hypotheses": [{"text": "a cat"}]}\n'
        )
    )
    assert read_references(ours) == {"a": "the cat"}


def test_lines_of_an_id_and_a_text_are_references(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("a the  caf\u00e9\n\nb\tsat \nc\n")
    assert read_references(text) == {"a": "the  caf\u00e9", "b": "sat", "c": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a the\nb cat\na the", "text:3: utterance 'a' is there a second time; need one"),
        (b'{"utt": "a", "ref": "x", "hyps": []}\n{"utt": "a"', "text:2: no JSON"),
        (b'{"id": "a", "ref": 1}', "/ref: is 1; need a string"),
        (b"a \xff", 'text: no references can be read .*need n-best lists or lines "id text"'),
    ],
)
def test_what_is_none_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_references(path)
    with pytest.raises(DataError, match="no references can be read"):
        read_references(tmp_path / "none")


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    whole = gzip.compress(b"".join(b"%d the cat sat\n" % number for number in range(999)))
    for damaged in (whole[:-40], whole[:40] + b"\xff" * 60 + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"text\.gz: no references can be read"):
            read_references(path)
