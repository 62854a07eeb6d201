"""Kaldi archives and OpenFst text: costs, final weights, states in any order, what is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from quantized_lm.errors import LatticeError, NoPathError
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.lattice import Lattice, Ragged

from .format_cases import SYMBOLS, exact, make_lattice, paths, small

TEXT = LATTICE_FORMATS["kaldi-text"]
BINARY = LATTICE_FORMATS["kaldi-binary"]
OPENFST = LATTICE_FORMATS["openfst-text"]
NO_OPTIONS = ReadOptions()
COMPACT = """utt-a{}
0 1 7 3.25,5.5,2_2_3
0 2 8 1,2,
1 0.5,0.25,4
2 0,1,

utt-b{}
0 1 9 1,1,5
1 0,0,

""".replace("{}", " ")  # Kaldi puts a space behind an id
LATTICE = """utt-a{}
0 1 2 7 3.25,5.5
1 2 3 0 1,2
2 0,0

""".replace("{}", " ")


def read(text: str) -> list[Lattice]:
    return TEXT.read(text.encode(), NO_OPTIONS)


def lists(column: object) -> list[list[int]]:
    assert isinstance(column, Ragged)
    return [column.row(index).tolist() for index in range(len(column.splits) - 1)]


def test_compact_lattices_have_costs_and_final_weights_with_transition_ids() -> None:
    one, other = read(COMPACT)
    assert (one.utterance, other.utterance) == ("utt-a", "utt-b")
    assert one.graph.tolist() == [-3.25, -1.0, -0.5, 0.0]
    assert one.am.tolist() == [-5.5, -2.0, -0.25, -1.0]
    assert one.words.values.tolist() == [7, 8]
    assert lists(one.arc_attributes["alignment"]) == [[2, 2, 3], [], [4], []]
    assert other.num_arcs == 1


@pytest.mark.parametrize("text", [COMPACT, LATTICE])
def test_an_archive_is_written_as_it_was_read_as_text_and_by_way_of_binary(text: str) -> None:
    lattices = read(text)
    assert TEXT.write(lattices).decode() == text
    assert TEXT.write(BINARY.read(BINARY.write(lattices), NO_OPTIONS)).decode() == text
    assert TEXT.drops(lattices) == []


def test_text_and_binary_may_stand_in_one_archive() -> None:
    mixed = COMPACT.encode() + BINARY.write(read(LATTICE)) + LATTICE.encode()
    names = [lattice.utterance for lattice in BINARY.read(mixed, NO_OPTIONS)]
    assert names == ["utt-a", "utt-b", "utt-a", "utt-a"]


def test_the_binary_form_has_the_bytes_that_openfst_writes() -> None:
    head = struct.pack("<i", 2125659606) + struct.pack("<i", 6) + b"vector"
    head += struct.pack("<i", 8) + b"lattice4" + struct.pack("<iiQqqq", 2, 0, 3, 0, 3, 0)
    zero = struct.pack("<ff", np.inf, np.inf)
    states = zero + struct.pack("<qiiffi", 1, 2, 7, 3.25, 5.5, 1)
    states += zero + struct.pack("<qiiffi", 1, 3, 0, 1, 2, 2) + struct.pack("<ffq", 0, 0, 0)
    assert BINARY.write(read(LATTICE)) == b"utt-a \0B" + head + states


@pytest.mark.parametrize(("name", "double"), [("lattice4", "f"), ("lattice8", "d")])
@pytest.mark.parametrize("compact", [False, True])
def test_all_four_arc_types_are_read(name: str, double: str, compact: bool) -> None:
    arc_type = f"compact{name}4" if compact else name
    ids = struct.pack("<iii", 2, 5, 6) if compact else b""
    none = struct.pack("<i", 0) if compact else b""
    data = struct.pack("<i", 2125659606) + struct.pack("<i", 6) + b"vector"
    data += struct.pack("<i", len(arc_type)) + arc_type.encode()
    data += struct.pack("<iiQqqq", 2, 4, 3, 0, 2, 1)
    data += struct.pack(f"<2{double}", np.inf, np.inf) + none + struct.pack("<q", 1)
    data += struct.pack(f"<ii2{double}", 7, 7, 1.5, 2.5) + ids + struct.pack("<i", 1)
    data += struct.pack(f"<2{double}", 0, 0) + none + struct.pack("<q", 0)
    (lattice,) = BINARY.read(b"\0B" + data, NO_OPTIONS)
    assert (lattice.utterance, lattice.am.tolist(), lattice.graph.tolist()) == ("", [-2.5], [-1.5])
    if compact:
        assert lists(lattice.arc_attributes["alignment"]) == [[5, 6]]


def test_states_come_in_any_order_and_those_in_order_keep_their_numbers() -> None:
    (lattice,) = read("u\n7 3 1 1,1,\n3 9 2 2,2,\n7 9 3 3,3,\n9\n")
    assert lattice.src.tolist() == [0, 0, 1]
    assert lattice.dst.tolist() == [1, 2, 2]
    assert lattice.words.values.tolist() == [1, 3, 2]
    (sorted_one,) = read("u\n0 2 1 1,1,\n0 1 2 1,1,\n1 3 3 1,1,\n2 3 4 1,1,\n3\n")
    assert sorted_one.dst.tolist() == [2, 1, 3, 3]


def test_words_may_be_words() -> None:
    text = "u\n0 1 a 1,1,\n1 2 b 1,1,\n2 3 <eps> 1,1,\n3\n"
    (lattice,) = read(text)
    assert [path[1::2] for path in paths(lattice, exact)] == [("a", "b")]
    symbols = {10: "b", 11: "a"}
    (known,) = TEXT.read(text.encode(), ReadOptions(symbols=symbols))
    assert known.words.values.tolist() == [11, 10]
    with pytest.raises(LatticeError, match="line 3: arc 1 has word 'b'") as caught:
        TEXT.read(text.encode(), ReadOptions(symbols={1: "a"}))
    assert caught.value.pointer == "/arcs/1"


def test_an_infinite_final_weight_is_none() -> None:
    (lattice,) = read("u\n0 1 5 1,1,\n0 Infinity,Infinity,\n1 0,0,\n")
    assert lattice.num_arcs == 1


def test_a_lattice_of_one_final_state_is_a_path_without_words() -> None:
    (lattice,) = read("u\n0 1.5,2,3_4\n\n")
    assert (lattice.am.tolist(), lattice.graph.tolist()) == ([-2.0], [-1.5])
    (again,) = BINARY.read(BINARY.write([lattice]), NO_OPTIONS)
    assert again.am.tolist() == [-2.0]


def test_arcs_of_several_words_become_chains_with_the_scores_once() -> None:
    lattice = make_lattice([(0, 1, [1, 2, 3], -1.0, -2.0), (0, 1, [9], -3.0, 0.0)])
    text = TEXT.write([lattice]).decode()
    assert text == "u1 \n0 1 1 2,1,\n0 3 9 0,3,\n1 2 2 0,0,\n2 3 3 0,0,\n3 0,0,\n\n"


def test_two_arcs_from_one_state_into_the_last_stay_arcs() -> None:
    lattice = make_lattice([(0, 1, [1], -1.0, 0.0), (1, 2, [], -1.0, 0.0), (1, 2, [], -2.0, 0.0)])
    assert TEXT.write([lattice]).decode().splitlines()[-2] == "2 0,0,"


# As Kaldi writes it: no states, and start -1.
EMPTY = struct.pack("<i", 2125659606) + b"".join(
    struct.pack("<i", len(text)) + text for text in (b"vector", b"compactlattice44")
)
EMPTY += struct.pack("<iiQqqq", 2, 0, 3, -1, 0, 0)


@pytest.mark.parametrize("is_text", [True, False])
def test_an_archive_may_hold_empty_lattices(is_text: bool) -> None:
    lattices = read(COMPACT)
    one, other = TEXT.write(lattices[:1]), BINARY.write(lattices[1:])
    empty = b"utt-0 \n\n" if is_text else b"utt-0 \0B" + EMPTY
    content = empty + one + empty.replace(b"-0", b"-1") + other
    kept = TEXT.read(content, ReadOptions(keeps_empty=True))
    assert [lattice.utterance for lattice in kept] == ["utt-0", "utt-a", "utt-1", "utt-b"]
    assert [lattice.num_arcs for lattice in kept] == [0, 4, 0, 1]
    with pytest.raises(NoPathError, match="utterance utt-0: the lattice is empty"):
        TEXT.read(content, NO_OPTIONS)


@pytest.mark.parametrize(
    ("text", "pointer", "message"),
    [
        ("u\n\n", "/arcs", "utterance u: the lattice is empty"),
        ("u\n0 1 5 1,1,\n1 0 6 1,1,\n1\n", "/arcs/0|/arcs/1", "part of a cycle"),
        ("u\n0 0 5 1,1,\n0\n", "/arcs/0", "line 2: arc 0 from state 0 to 0 is part of a cycle"),
        (
            "u\n0 1 5 1,1,\n7 1 6 1,1,\n1\n",
            "/arcs/1",
            "line 3: arc 1 is at state 7, which the start",
        ),
        (
            "u\n0 1 5 1,1,\n0 7 6 1,1,\n1\n",
            "/arcs/1",
            "arc 1 is at state 7, which reaches no final",
        ),
        ("u\n0 1 5 1,1,\n1\n7\n", "/arcs", "there is a state 7"),
        ("u\n0 1 5 1,1,\n", "/finals", "no final state"),
        ("u\n0 1 5 1,1,\n1\n1 2,2,\n", "/finals/1", "line 4: final 1 is state 1, which has"),
        ("u\n0 1 5 nan,1,\n1\n", "/arcs/0", "graph score nan"),
        ("u\n0 1 5 1,-inf,\n1\n", "/arcs/0", "acoustic score inf"),
        ("u\n0 1 5 1,1,\n1 nan,nan,\n", "/finals/0", "score nan"),
        ("u\n0 1 5 1,1\n1\n", "/arcs/0", "need graph,acoustic,transition_ids"),
        ("u\n0 1 5 1,x,\n1\n", "/arcs/0", "line 2: arc 0 has acoustic cost 'x'; need a number"),
        ("u\n0 1 5 1,1,2_x\n1\n", "/arcs/0", "transition ids '2_x'"),
        ("u\n0 1 5 1,1,2__3\n1\n", "/arcs/0", "transition ids"),
        ("u\n0 1 5 1,1,9999999999\n1\n", "/arcs/0", "transition ids"),
        ("u\n0 1 5 1,1,\n0 1 5 5 1,1\n1\n", "/arcs/1", "line 3: arc 1 has 5 columns; need 3 or 4"),
        ("u\n0 -1 5 1,1,\n1\n", "/arcs/0", "state '-1'"),
        ("u\n0 1 99999999999 1,1,\n1\n", "/arcs/0", "word '99999999999'"),
        ("u\nx 1 5 1,1,\n1\n", "/arcs/0", "state 'x'"),
        ("u\n0 1 5 1,1,\n1\n\nv ", "", "line 5: ends with 'v'"),
        ("u what\n0 1 5 1,1,\n1\n", "", "line 1: is 'what'"),
        ("\n \n", "", "archive is empty"),
    ],
)
def test_a_bad_text_lattice_is_refused_where_it_is_bad(
    text: str, pointer: str, message: str
) -> None:
    with pytest.raises(LatticeError, match=message) as caught:
        read(text)
    assert caught.value.pointer in pointer.split("|")


def test_the_line_of_a_fault_counts_from_the_top_of_the_archive() -> None:
    with pytest.raises(LatticeError, match="utterance utt-b: line 8: arc 0 has graph cost"):
        read(COMPACT.replace("0 1 9 1,", "0 1 9 y,"))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"\0", "does not begin as a binary automaton"),
        (8, b"const!", "need a 'vector' of lattice|need a 'vector' of"),
        (18, b"lattice9", "it is a 'vector' of 'lattice9'"),
        (26, b"\3", "version 3"),
        (30, b"\1", "flags 1"),
        (42, b"\7", "starts at 7"),
        (50, b"\xff" * 8, "-1 states"),
        (50, b"\xff" * 5, "states and starts"),
        (74, b"\xff\xff\xff\x7f", "has 2147483647 arcs"),
        (74, b"\x09", "has 9 arcs, more than the file"),
        (74, b"\xff" * 8, "has -1 arcs"),
        (98, b"\x09", "arc 0 ends at state 9"),
        (82, b"\xff\xff\xff\xff", "arc 0 has labels"),
    ],
)
def test_a_bad_binary_lattice_is_refused(place: int, value: bytes, message: str) -> None:
    content = bytearray(BINARY.write(read(LATTICE)))
    start = len(b"utt-a \0B")
    content[start + place : start + place + len(value)] = value
    with pytest.raises(LatticeError, match=message) as caught:
        BINARY.read(bytes(content), NO_OPTIONS)
    assert "utterance utt-a" in str(caught.value)


def test_a_binary_lattice_that_ends_early_is_refused_wherever_it_ends() -> None:
    content = BINARY.write(read(COMPACT)[:1])
    for end in range(1, len(content)):
        with pytest.raises(LatticeError):
            BINARY.read(content[:end], ReadOptions(keeps_empty=True))


@pytest.mark.parametrize("utterance", ["", "a b", "a\n"])
def test_an_archive_needs_ids_without_spaces(utterance: str) -> None:
    with pytest.raises(LatticeError, match="needs one without spaces"):
        TEXT.write([replace(small(), utterance=utterance)])


def test_openfst_text_is_acceptor_or_transducer_by_its_columns() -> None:
    def words(text: str) -> list[int]:
        (lattice,) = OPENFST.read(text.encode(), NO_OPTIONS)
        return [int(word) for word in lattice.words.values]

    assert words("0 1 5 0.5\n1\n") == [5]
    assert words("0 1 5\n1 0.5\n") == [5]
    assert words("0 1 5\n1 2 6 4\n2\n") == [5, 6]
    assert words("0 1 5 5\n1 2 6 6\n2\n") == [5, 6]
    assert words("0 1 5 one\n1 2 5 2\n2\n") == [1, 2]
    assert words("0 1 5 6 2\n1\n") == [6]
    assert words("0 1 5 6 2\n1 2 5 7\n2\n") == [6, 7]


def test_openfst_columns_that_may_be_either_are_refused() -> None:
    text = "0 1 5 5\n1 2 6 4\n2\n"
    with pytest.raises(LatticeError, match=r"line 2: arc 1 has '4' in column 4.*as 4\.0, or 0 in"):
        OPENFST.read(text.encode(), NO_OPTIONS)
    (acceptor,) = OPENFST.read(text.replace("6 4", "6 4.0").encode(), NO_OPTIONS)
    assert acceptor.am.tolist() == [-5.0, -4.0]
    (transducer,) = OPENFST.read(text.replace("6 4", "6 4 0").encode(), NO_OPTIONS)
    assert transducer.words.values.tolist() == [5, 4]


def test_openfst_weights_are_costs_and_input_labels_are_carried() -> None:
    (lattice,) = OPENFST.read(b"0 1 5 6 0.5\n1 2 7 0\n1 3\n2 Infinity\n2 1\n", NO_OPTIONS)
    assert lattice.am.tolist() == [-0.5, 0.0, -3.0, -1.0]
    assert not lattice.graph.any()
    assert OPENFST.write([lattice]) == b"0\t1\t5\t6\t0.5\n1\t2\t7\t0\t0\n1\t3\n2\t1\n"


def test_openfst_text_may_have_words() -> None:
    (lattice,) = OPENFST.read(b"0 1 hello it's 0.5\n1\n", ReadOptions(symbols=SYMBOLS))
    assert lattice.words.values.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        ("", "/arcs"),
        ("0 1 5 6 7 8\n1\n", "/arcs/0"),
        ("0 1 5 6 x\n1\n", "/arcs/0"),
        ("0 1 5 6 1\n1 nan\n", "/finals/0"),
        ("0 1 5 6 -inf\n1\n", "/arcs/0"),
        ("0 1 5 6 1\n1 0 5 6 1\n1\n", "/arcs/0|/arcs/1"),
    ],
)
def test_bad_openfst_text_is_refused_where_it_is_bad(text: str, pointer: str) -> None:
    with pytest.raises(LatticeError) as caught:
        OPENFST.read(text.encode(), NO_OPTIONS)
    assert caught.value.pointer in pointer.split("|")
