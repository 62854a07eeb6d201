"""Every format keeps the paths of a lattice and every score bit that it holds."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import PurePath

import numpy as np
import pytest
from hypothesis import given, settings

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats import (
    LATTICE_FORMATS,
    ReadOptions,
    format_by_name,
    format_of_media_type,
    format_of_path,
)
from quantized_lm.lattice.formats.base import Places
from quantized_lm.lattice.formats.numbers import parse_floats, texts_of
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.reshape import final_weight_arcs

from .format_cases import HELD, OPTIONS, exact, lattices, make_lattice, paths, small

NAMES = list(LATTICE_FORMATS)
WITH_WEIGHTS = ("kaldi-text", "kaldi-binary", "openfst-text")


def through(name: str, lattice: Lattice) -> Lattice:
    (result,) = LATTICE_FORMATS[name].read(LATTICE_FORMATS[name].write([lattice]), OPTIONS)
    return replace(result, utterance="u1")


@pytest.mark.parametrize("name", NAMES)
@given(lattice=lattices())
@settings(max_examples=60, deadline=None)
def test_paths_words_and_scores_come_back(name: str, lattice: Lattice) -> None:
    once = through(name, lattice)
    assert paths(once, exact) == paths(lattice, HELD[name])


@pytest.mark.parametrize(("first", "second"), list(product(NAMES, NAMES)))
@given(lattice=lattices())
@settings(max_examples=8, deadline=None)
def test_every_pair_of_formats_keeps_what_both_hold(
    first: str, second: str, lattice: Lattice
) -> None:
    once = through(first, lattice)
    assert paths(through(second, once), exact) == paths(once, HELD[second])


@pytest.mark.parametrize("name", NAMES)
@given(lattice=lattices())
@settings(max_examples=20, deadline=None)
def test_what_was_read_is_written_as_the_same_bytes(name: str, lattice: Lattice) -> None:
    once = through(name, lattice)
    final = final_weight_arcs(once)
    # A free arc without words at the very end becomes a final weight of one, which is no arc.
    if name in WITH_WEIGHTS and final.sum() == 1 and not (once.am + once.graph)[final].any():
        return
    content = LATTICE_FORMATS[name].write([once])
    (again,) = LATTICE_FORMATS[name].read(content, OPTIONS)
    assert LATTICE_FORMATS[name].write([again]) == content


@pytest.mark.parametrize("name", [n for n in NAMES if LATTICE_FORMATS[n].holds_many])
def test_several_lattices_come_back_with_their_names(name: str) -> None:
    one = small()
    other = make_lattice([(0, 1, [4], -7.0, -1.0), (1, 2, [], 0.0, 0.0)], utterance="u2")
    content = LATTICE_FORMATS[name].write([one, other])
    read = LATTICE_FORMATS[name].read(content, OPTIONS)
    assert [lattice.utterance for lattice in read] == ["u1", "u2"]
    for before, after in zip((one, other), read, strict=True):
        assert paths(after, exact) == paths(before, HELD[name])


@pytest.mark.parametrize("name", [n for n in NAMES if not LATTICE_FORMATS[n].holds_many])
def test_a_format_of_one_lattice_refuses_two(name: str) -> None:
    with pytest.raises(LatticeError, match="holds one lattice; got 2"):
        LATTICE_FORMATS[name].write([small(), small()])


@pytest.mark.parametrize("name", NAMES)
def test_no_lattice_cannot_be_written(name: str) -> None:
    with pytest.raises(LatticeError, match="no lattice to write"):
        LATTICE_FORMATS[name].write([])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"\0B", b"u \0B", b"PK\3\4", b"\xff\xfe"])
def test_what_is_no_lattice_is_refused(name: str, content: bytes) -> None:
    with pytest.raises(LatticeError):
        LATTICE_FORMATS[name].read(content, ReadOptions())


@pytest.mark.parametrize("name", NAMES)
def test_too_many_arcs_are_refused_with_limit_and_count(name: str) -> None:
    content = LATTICE_FORMATS[name].write([small()])
    with pytest.raises(LatticeError, match=r"\d arcs; need at most 2"):
        LATTICE_FORMATS[name].read(content, ReadOptions(symbols=OPTIONS.symbols, max_arcs=2))


@pytest.mark.parametrize("name", NAMES)
def test_a_path_without_words_is_a_path(name: str) -> None:
    silence = make_lattice([(0, 1, [], -3.0, 0.0)])
    assert paths(through(name, silence), exact) == [((-3.0, 0.0),)]


@pytest.mark.parametrize("name", ["k2-text", "kaldi-text", "kaldi-binary", "openfst-text"])
def test_a_word_outside_the_symbol_table_is_refused(name: str) -> None:
    content = LATTICE_FORMATS[name].write([small()])
    with pytest.raises(LatticeError, match="not in the symbol table") as caught:
        LATTICE_FORMATS[name].read(content, ReadOptions(symbols={1: "hello", 2: "it's"}))
    assert caught.value.pointer == "/arcs/2"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_format_cannot_hold_is_named(name: str) -> None:
    lattice = small(posterior=np.array([0.5, 0.5, 1.0, 1.0]))
    drops = LATTICE_FORMATS[name].drops([lattice])
    (after,) = LATTICE_FORMATS[name].read(LATTICE_FORMATS[name].write([lattice]), OPTIONS)
    assert ("posterior" in drops) == ("posterior" not in after.arc_attributes)


def test_a_score_too_large_for_float32_is_not_written_as_infinite() -> None:
    lattice = make_lattice([(0, 1, [], -1e300, 0.0)])
    for name in ("k2-json", "k2-safetensors", "k2-pt", "k2-text", "kaldi-binary"):
        with pytest.raises(LatticeError, match="too large for float32") as caught:
            LATTICE_FORMATS[name].write([lattice])
        assert caught.value.pointer == "/arcs/0"
    assert through("kaldi-text", lattice).am[0] == -1e300


def test_text_of_a_number_is_short_and_loses_no_bit() -> None:
    single = np.array([0.1, -2.5, 1 / 3, 3.4e38, 1e-45], np.float32).astype(np.float64)
    double = np.array(
        [
            0.1,
            0.100000001,
            -192.19519,
            2e-9,
            1.17549435e-38,
            -1 / 3,
            1e-320,
            1e300,
            -0.0,
            0.0,
            -np.inf,
        ]
    )
    values = np.concatenate([single, double])
    texts = texts_of(values)
    assert texts[:3] == ["0.100000001", "-2.5", "0.333333343"]
    assert texts[5] == "0.1"
    back = parse_floats(texts, Places(), "score")
    assert back.tobytes() == values.tobytes()


def test_a_format_is_known_by_suffix_name_and_media_type() -> None:
    assert format_of_path(PurePath("a/b.K2.JSON.gz")).name == "k2-json"
    assert format_of_path(PurePath("x.lat.gz")).name == "htk"
    assert format_of_path(PurePath("x.lat.txt")).name == "kaldi-text"
    assert format_of_media_type("Application/JSON; charset=utf-8").name == "k2-json"
    for one in LATTICE_FORMATS.values():
        assert format_of_media_type(one.media_type) is one
        assert format_by_name(one.name) is one
        for suffix in one.suffixes:
            assert format_of_path(PurePath(f"lattice{suffix}")) is one


def test_an_unknown_format_is_refused_with_those_there_are() -> None:
    with pytest.raises(LatticeError, match=r"need \.k2\.json, .*\.fst\.txt"):
        format_of_path(PurePath("a.docx"))
    with pytest.raises(LatticeError, match="need one of application/json"):
        format_of_media_type("text/html")
    with pytest.raises(LatticeError, match="need one of k2-json"):
        format_by_name("k3")


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(LatticeError, match="need one of auto, labels, aux_labels"):
        ReadOptions(words_on="words")
    with pytest.raises(LatticeError, match="need a number above 0"):
        ReadOptions(lm_scores_scale=0.0)
