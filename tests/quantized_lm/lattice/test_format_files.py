"""Files of lattices and symbol tables: packed, damaged, too large, written in one piece."""

from __future__ import annotations

import gzip
import io
import time
from pathlib import Path

import numpy as np
import pytest

from quantized_lm.errors import DataError, LatticeError
from quantized_lm.lattice.files import read_bytes, read_lattices, unpack, write_lattices
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.symbols import read_symbols, symbols_text, with_one_table

from .format_cases import OPTIONS, SYMBOLS, exact, make_lattice, paths, small


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", LATTICE_FORMATS)
def test_a_file_is_read_as_it_was_written_and_leaves_nothing_beside(
    tmp_path: Path, name: str, suffix: str
) -> None:
    one = LATTICE_FORMATS[name]
    path = tmp_path / f"a.b{one.suffixes[0]}{suffix}"
    write_lattices(path, [small()])
    (lattice,) = read_lattices(path, OPTIONS)
    assert paths(lattice, exact)
    assert lattice.utterance == ("a.b" if name in ("k2-text", "openfst-text") else "u1")
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_lattices_give_the_same_bytes(tmp_path: Path) -> None:
    path, other = tmp_path / "a.ark.gz", tmp_path / "b.ark.gz"
    write_lattices(path, [small()])
    write_lattices(other, [small()])
    assert path.read_bytes() == other.read_bytes()


def test_lattices_of_a_file_without_ids_are_numbered(tmp_path: Path) -> None:
    arcs = [(0, 1, [1], -1.0, 0.0), (1, 2, [], 0.0, 0.0)]
    nameless = [make_lattice(arcs, utterance=""), make_lattice(arcs, utterance="")]
    write_lattices(tmp_path / "x.safetensors", nameless)
    names = [one.utterance for one in read_lattices(tmp_path / "x.safetensors")]
    assert names == ["x-0", "x-1"]


def test_a_packed_file_need_not_end_in_gz_and_may_have_several_parts(tmp_path: Path) -> None:
    content = LATTICE_FORMATS["htk"].write([small()])
    path = tmp_path / "a.slf"
    path.write_bytes(gzip.compress(content[:50]) + gzip.compress(content[50:]))
    assert read_lattices(path)[0].num_arcs == 4


def test_a_bomb_is_refused_while_it_unpacks() -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as handle:
        for _ in range(64):
            handle.write(bytes(1 << 20))
    began = time.perf_counter()
    with pytest.raises(DataError, match="unpacks to more than 2097152 bytes"):
        unpack(packed.getvalue(), limit=2 << 20)
    assert time.perf_counter() - began < 1


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ark"
    path.write_bytes(bytes(11))
    with pytest.raises(DataError, match="more than 10 bytes"):
        read_bytes(path, limit=10)


@pytest.mark.parametrize("cut", [5, 15, -4])
def test_a_damaged_gzip_is_refused(cut: int) -> None:
    with pytest.raises(DataError, match="gzip"):
        unpack(gzip.compress(b"hello" * 100)[:cut])
    with pytest.raises(DataError, match="is no gzip file"):
        unpack(gzip.compress(b"hello") + b"junk")


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.fst.txt"
    path.write_text("0 1 5 6 x\n")
    with pytest.raises(LatticeError, match=r"a\.fst\.txt: line 1: arc 0 has weight 'x'") as caught:
        read_lattices(path)
    assert caught.value.pointer == "/arcs/0"
    with pytest.raises(DataError, match="cannot be read"):
        read_lattices(tmp_path / "b.ark")
    with pytest.raises(DataError, match="cannot be written"):
        write_lattices(tmp_path / "none" / "b.ark", [small()])


def test_a_symbol_table_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("<eps> 0\nhello 1\n\nwörld 12\n", encoding="utf-8")
    symbols = read_symbols(path)
    assert symbols == {0: "<eps>", 1: "hello", 12: "wörld"}
    assert symbols_text(symbols) == "<eps> 0\nhello 1\nwörld 12\n"
    path.write_bytes(b"\xef\xbb\xbfhello 1\r\n")
    assert read_symbols(path) == {1: "hello"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1\nb 1\n", "words.txt:2: id 1 is there a second time"),
        ("a 1\na 2\n", "words.txt:2: word 'a' is there a second time"),
        ("a 1\nb\n", "words.txt:2: is 'b'; need"),
        ("a -1\n", "words.txt:1"),
        ("a b 1\n", "words.txt:1"),
        ("a 99999999999\n", "too large"),
    ],
)
def test_a_bad_symbol_table_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_symbols(path)
    with pytest.raises(DataError, match="no symbol table can be read"):
        read_symbols(tmp_path / "none")


def test_a_word_with_a_space_does_not_go_into_a_table() -> None:
    with pytest.raises(DataError, match="holds words without spaces"):
        symbols_text({1: "two words"})


def test_words_and_ids_alone_have_no_table_in_common() -> None:
    with pytest.raises(LatticeError, match="has ids alone and others have words"):
        with_one_table([small(), make_lattice([(0, 1, [1], 0.0, 0.0)], symbols=None)])
    assert with_one_table([]) == []


@pytest.mark.parametrize("name", LATTICE_FORMATS)
def test_a_hundred_thousand_arcs_are_read_in_seconds(name: str) -> None:
    """Well under one second on an idle machine; text about one."""
    count = 99_999
    rng = np.random.default_rng(1)
    states = np.arange(count // 3)
    arcs = [
        (state, state + 1, [word], am, graph)
        for state, word, am, graph in zip(
            np.repeat(states, 3).tolist(),
            rng.choice(sorted(SYMBOLS), count).tolist(),
            rng.normal(-50, 9, count).astype(np.float32).tolist(),
            rng.normal(-9, 3, count).astype(np.float32).tolist(),
            strict=True,
        )
    ]
    one = LATTICE_FORMATS[name]
    content = one.write([make_lattice(arcs)])
    began = time.process_time()
    (lattice,) = one.read(content, ReadOptions(symbols=SYMBOLS, max_arcs=100_001))
    spent = time.process_time() - began
    assert lattice.num_arcs in (count, count + 1)
    assert spent < 10, f"{name} took {spent:.2f} s"
    print(name, round(spent, 3), len(content))  # noqa: T201 - shown where the test fails
