"""HTK's SLF: both places of words, headers, bases, escapes, what is refused; and real files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.files import read_lattices
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.lattice import Lattice

from .format_cases import exact, make_lattice, paths

HTK = LATTICE_FORMATS["htk"]
ON_NODES = """VERSION=1.0
UTTERANCE=u1
lmname=a.arpa
lmscale=14.00
start=0
end=3
N=4 L=4
I=0 W=!NULL t=0
I=1 W=hello t=0.5 v=1
I=2 W="it's" t=0.25 v=2
I=3 W=</s> t=1 v=1
J=0 S=0 E=1 a=-1.5 l=-0.5 p=0.25
J=1 S=0 E=2 a=-2.5 l=-1 p=0
J=2 S=1 E=3 a=-3 l=0 p=1
J=3 S=2 E=3 a=-4 l=-2 p=1
"""
ON_LINKS = """# made by hand
VERSION=1.1
N=3 L=3
I=2 t=1.0
I=0 t=0.0
I=1 t=0.5
J=0 START=0 END=1 WORD=hello acoustic=-1.5 language=-0.5
J=1 S=0 E=1 W=there
J=2 S=1 E=2 W=!NULL a=-2
"""


def read(text: str, options: ReadOptions | None = None) -> Lattice:
    (lattice,) = HTK.read(text.encode(), options or ReadOptions())
    return lattice


def test_a_link_has_the_word_of_the_node_it_enters() -> None:
    lattice = read(ON_NODES)
    assert paths(lattice, exact) == [
        ((-1.5, -0.5), "hello", (-3.0, 0.0), "</s>"),
        ((-2.5, -1.0), "it's", (-4.0, -2.0), "</s>"),
    ]
    assert dict(lattice.header) == {"lmname": "a.arpa", "lmscale": "14.00"}
    assert lattice.utterance == "u1"
    assert lattice.state_attributes["time_s"].tolist() == [0.0, 0.5, 0.25, 1.0]
    np.testing.assert_array_equal(lattice.state_attributes["v"], [math.nan, 1, 2, 1])


def test_a_file_is_written_as_it_was_read() -> None:
    assert HTK.write([read(ON_NODES)]).decode() == ON_NODES
    assert HTK.drops([read(ON_NODES)]) == []


def test_words_on_links_stay_there_where_links_into_a_node_differ() -> None:
    lattice = read(ON_LINKS)
    assert paths(lattice, exact) == [
        ("there", (-2.0, 0.0)),
        ((-1.5, -0.5), "hello", (-2.0, 0.0)),
    ]
    written = HTK.write([lattice]).decode()
    assert "J=1 S=0 E=1 W=there a=0" in written
    assert paths(read(written), exact) == paths(lattice, exact)


@pytest.mark.parametrize(
    ("base", "factor"), [("10", math.log(10)), ("2.71828", 1.0), ("1.0001", math.log(1.0001))]
)
def test_logs_of_another_base_become_natural(base: str, factor: float) -> None:
    lattice = read(ON_NODES.replace("lmname", f"base={base}\nlmname"))
    np.testing.assert_array_equal(lattice.am, np.array([-1.5, -2.5, -3.0, -4.0]) * factor)
    assert "base" not in lattice.header


def test_base_0_means_probabilities() -> None:
    lattice = read(
        ON_LINKS.replace("N=3", "base=0\nN=3")
        .replace("-1.5", "0.5")
        .replace("-0.5", "0")
        .replace("a=-2", "a=1")
    )
    assert lattice.am.tolist() == [math.log(0.5), 0.0, 0.0]
    assert lattice.graph.tolist() == [-math.inf, 0.0, 0.0]


@pytest.mark.parametrize(
    ("written", "word"),
    [
        (r"\'EM", "'EM"),
        (r'"two words"', "two words"),
        (r"'a\"b'", 'a"b'),
        (r"a\040b", "a b"),
        (r"caf\303\251s", "cafés"),
        (r"\343\201\202\303\244", "あä"),
        (r"caf\351", "café"),  # no UTF-8, so Latin-1
        (r"a\\303", "a\\303"),
        (r"\4000", "4000"),  # no byte
        (r"a\\b", "a\\b"),
        ("é", "é"),
        ('""', ""),
        ("a=b", "a=b"),
    ],
)
def test_words_may_be_quoted_and_escaped(written: str, word: str) -> None:
    lattice = read(ON_NODES.replace("hello", written))
    assert lattice.symbols is not None
    assert lattice.symbols[1] == word
    again = read(HTK.write([lattice]).decode())
    assert paths(again, exact) == paths(lattice, exact)


def test_words_of_every_character_come_back() -> None:
    characters = [chr(code) for code in (*range(1, 0x180), 0x2028, 0x3042, 0x1F600)]
    for word in [*characters, "".join(characters)]:
        lattice = make_lattice([(0, 1, [1], -1.0, 0.0)], symbols={1: word})
        (again,) = HTK.read(HTK.write([lattice]), ReadOptions())
        assert dict(again.symbols or {}) == {1: word}


def test_a_word_on_the_start_node_is_said() -> None:
    text = ON_NODES.replace("I=0 W=!NULL t=0", "I=0 W=oh t=0.125")
    lattice = read(text)
    assert paths(lattice, exact) == [
        ("oh", (-1.5, -0.5), "hello", (-3.0, 0.0), "</s>"),
        ("oh", (-2.5, -1.0), "it's", (-4.0, -2.0), "</s>"),
    ]
    assert lattice.state_attributes["time_s"].tolist() == [0.125, 0.125, 0.5, 0.25, 1.0]
    np.testing.assert_array_equal(lattice.arc_attributes["p"], [math.nan, 0.25, 0, 1, 1])
    again = read(HTK.write([lattice]).decode())
    assert paths(again, exact) == paths(lattice, exact)
    with pytest.raises(LatticeError, match="line 8: arc 4 has word 'oh'"):
        read(text, ReadOptions(symbols={5: "hello", 6: "it's", 7: "</s>"}))


def test_scores_may_be_on_the_nodes_that_have_the_words() -> None:
    text = ON_NODES.replace("a=-1.5 ", "").replace("a=-2.5", "a=-0.125")
    text = text.replace("v=1\nI=2", "v=1 a=-9\nI=2").replace("v=2", "v=2 a=-8")
    lattice = read(text.replace("W=!NULL t=0", "W=!NULL t=0 a=-0.25"))
    assert paths(lattice, exact) == [
        ((-0.25, 0.0), (-0.125, -1.0), "it's", (-4.0, -2.0), "</s>"),
        ((-0.25, 0.0), (-9.0, -0.5), "hello", (-3.0, 0.0), "</s>"),
    ]
    assert "a" not in lattice.state_attributes
    again = read(HTK.write([lattice]).decode())
    assert paths(again, exact) == paths(lattice, exact)


def test_an_ngram_score_stands_in_for_that_of_the_lm() -> None:
    lattice = read(ON_NODES.replace("l=-0.5", "n=-0.25").replace("l=-2", "l=-2 n=-7"))
    assert lattice.graph.tolist() == [-0.25, -1.0, 0.0, -2.0]
    again = read(HTK.write([lattice]).decode())
    assert again.graph.tolist() == lattice.graph.tolist()


@pytest.mark.parametrize(
    ("scales", "factor"),
    [
        ("lmscale=14.00", 1 / 14),
        ("lmscale=2 prscale=0.5", 0.25),
        ("prscale=3", 3.0),
        ("lmscale=0 prscale=3", 3.0),
        ("lmscale=5 prscale=0", 0.0),
    ],
)
@pytest.mark.parametrize("base", [10.0, math.e])
def test_pronunciations_count_once_at_their_scale_beside_the_lms(
    scales: str, factor: float, base: float
) -> None:
    text = ON_NODES.replace("p=", "r=-").replace("lmscale=14.00", f"{scales}\nbase={base}")
    lattice = read(text)
    unit = math.log(base)
    expected = [-0.5 - 0.25 * factor, -1.0, -factor, -2.0 - factor]
    np.testing.assert_allclose(lattice.graph / unit, expected, rtol=1e-6)
    assert lattice.am[0] == pytest.approx(-1.5 * unit)
    assert "r" not in lattice.arc_attributes
    again = read(HTK.write([lattice]).decode())
    np.testing.assert_array_equal(again.graph, lattice.graph)
    assert " r=" not in HTK.write([lattice]).decode()


def test_pronunciations_without_scores_change_nothing() -> None:
    plain, zero = read(ON_NODES), read(ON_NODES.replace("p=", "r=-0.00 p="))
    np.testing.assert_array_equal(zero.graph, plain.graph)
    assert HTK.write([zero]) == HTK.write([plain])


def test_attributes_that_htk_would_count_are_not_written() -> None:
    ones = np.ones(1)
    lattice = make_lattice([(0, 1, [1], -1.0, 0.0)], attributes={"r": ones, "n": ones, "p": ones})
    assert HTK.drops([lattice]) == ["n", "r"]
    again = read(HTK.write([lattice]).decode())
    assert (again.graph.tolist(), list(again.arc_attributes)) == ([0.0], ["p"])


def test_times_count_in_units_of_the_header() -> None:
    lattice = read(ON_NODES.replace("lmname", "tscale=0.5\nlmname").replace("I=3 W", "I=3 t=3 W"))
    assert lattice.state_attributes["time_s"].tolist() == [0.0, 0.25, 0.125, 0.5]
    again = read(HTK.write([lattice]).decode())
    assert again.state_attributes["time_s"].tolist() == [0.0, 0.25, 0.125, 0.5]


def test_words_may_be_on_the_nodes_that_links_leave() -> None:
    backward = """dir=b
N=4 L=3
I=0 t=0 W=the
I=1 t=0.5 W=weather
I=2 t=0.625 W=is
I=3 t=1 W=nice a=-8
J=0 S=0 E=1 a=-1 l=-1
J=1 S=1 E=2 a=-2 l=-2
J=2 S=2 E=3 l=-3
"""
    lattice = read(backward)
    assert paths(lattice, exact) == [
        ((-1.0, -1.0), "the", (-2.0, -2.0), "weather", (0.0, -3.0), "is", (-8.0, 0.0), "nice")
    ]
    assert lattice.state_attributes["time_s"].tolist() == [0.0, 0.5, 0.625, 1.0, 1.0]
    assert "dir" not in lattice.header
    again = read(HTK.write([lattice]).decode())
    assert paths(again, exact) == paths(lattice, exact)
    assert again.state_attributes["time_s"].tolist() == lattice.state_attributes["time_s"].tolist()
    without = read(backward.replace("W=nice a=-8", "W=!NULL"))
    assert without.num_arcs == 3
    branching = read(backward.replace("L=3", "L=4") + "J=3 S=0 E=2 a=-0.5\n")
    assert paths(read(HTK.write([branching]).decode()), exact) == paths(branching, exact)


def test_words_of_the_sample_have_the_times_at_which_they_are_said() -> None:
    (lattice,) = read_lattices(Path(__file__).parents[3] / "deploy/sample_lattice.slf")
    assert (lattice.num_arcs, lattice.num_states) == (1538, 311)
    times = lattice.state_attributes["time_s"]
    words = words_of(lattice)
    of_word = np.flatnonzero(np.diff(lattice.words.splits))
    (first,) = [at for at, word in zip(of_word, words, strict=True) if word == "please"][:1]
    assert (times[lattice.src[first]], times[lattice.dst[first]] > 0.3) == (0.03, True)


def test_a_node_without_a_word_has_none_in_other_formats() -> None:
    lattice = read(ON_NODES.replace("W=</s>", "W=!NULL"))
    assert set((lattice.symbols or {}).values()) == {"hello", "it's"}
    assert "!NULL" not in LATTICE_FORMATS["k2-json"].write([lattice]).decode()


def test_the_header_may_have_short_names_and_a_byte_order_mark() -> None:
    short = ON_NODES.replace("VERSION=1.0\nUTTERANCE=u1", "V=1.0 U=u1")
    lattice = read("\ufeff" + short)
    assert lattice.utterance == "u1"
    assert HTK.write([lattice]).decode() == ON_NODES
    links = "\ufeff" + ON_NODES.replace("S=0 E=1", "S=0 E=1 V=5").replace("UTTERANCE", "U")
    assert read(links).arc_attributes["V"].tolist()[0] == 5  # type: ignore[union-attr]
    assert read(links).utterance == "u1"
    latin = b"\xef\xbb\xbf" + ON_NODES.encode().replace(b"hello", b"caf\xe9")
    with pytest.raises(LatticeError, match="line 9: has byte 0xe9"):
        HTK.read(latin, ReadOptions())


def test_an_epsilon_is_no_word() -> None:
    lattice = read(ON_NODES.replace("hello", "<eps>"))
    assert set((lattice.symbols or {}).values()) == {"it's", "</s>"}
    assert paths(lattice, exact)[0] == ((-1.5, -0.5), (-3.0, 0.0), "</s>")


def test_another_encoding_is_named_with_its_place() -> None:
    content = ON_NODES.replace("hello", "café").encode("latin-1")
    with pytest.raises(LatticeError, match="line 9: has byte 0xe9.*iconv -f latin1 -t utf-8"):
        HTK.read(content, ReadOptions())


def test_sublattices_are_named_before_anything_is_counted() -> None:
    sub = "SUBLAT=digit\n" + ON_LINKS.replace("L=3", "L=3 base=10") + ".\n"
    with pytest.raises(LatticeError, match="sublattices; expand them first"):
        read(sub + ON_NODES.replace("v=2", "L=digit"))


def test_ids_come_from_the_table_that_is_given() -> None:
    symbols = {5: "hello", 6: "it's", 7: "</s>"}
    lattice = read(ON_NODES, ReadOptions(symbols=symbols))
    assert lattice.words.values.tolist() == [5, 6, 7, 7]
    with pytest.raises(LatticeError, match='line 13: arc 1 has word "it\'s"') as caught:
        read(ON_NODES, ReadOptions(symbols={5: "hello"}))
    assert caught.value.pointer == "/arcs/1"


def test_nodes_out_of_order_are_renumbered_with_their_times() -> None:
    text = "N=3 L=2\nI=0 t=1\nI=1 t=0\nI=2 t=0.5 W=x\nJ=0 S=2 E=0 d=:a,1:\nJ=1 S=1 E=2\n"
    lattice = read(text)
    assert lattice.src.tolist() == [0, 1]
    assert lattice.state_attributes["time_s"].tolist() == [0.0, 0.5, 1.0]
    assert lattice.arc_attributes["d"].tolist() == ["", ":a,1:"]  # type: ignore[union-attr]
    assert "J=1 S=1 E=2 a=0 d=:a,1:" in HTK.write([lattice]).decode()


@pytest.mark.parametrize(
    ("before", "after", "pointer", "message"),
    [
        ("N=4 L=4", "N=5 L=4", "", "N=5, but there are 4"),
        ("N=4 L=4", "N=4 L=5", "", "L=5, but there are 4"),
        ("N=4 L=4", "", "", "N=None"),
        ("N=4 L=4", "N=4 L=999999", "/arcs", "999999 arcs; need at most 100000"),
        (
            "E=3 a=-4",
            "E=4 a=-4",
            "/arcs/3",
            "line 15: arc 3 has E= '4'; need a whole number from 0 to 3",
        ),
        ("E=3 a=-4", "a=-4", "/arcs/3", "E= ''"),
        ("S=2 E=3", "S=2 E=2", "/arcs/3", "part of a cycle"),
        ("S=0 E=2", "S=1 E=1", "/arcs/1", "part of a cycle"),
        ("S=0 E=2", "S=0 E=1", "/arcs/3", "line 15: arc 3 is at state 2, which the start"),
        ("S=2 E=3", "S=0 E=3", "/arcs/1", "line 13: arc 1 is at state 2, which reaches no final"),
        ("a=-4", "a=x", "/arcs/3", "a= 'x'"),
        ("a=-4", "a=nan", "/arcs/3", "acoustic score nan"),
        ("l=-2", "l=inf", "/arcs/3", "graph score inf"),
        ("I=2", "I=1", "/nodes/2", "line 10: node 2 has number 1, as another has"),
        ("I=2", "I=9", "/nodes/2", "number '9'"),
        ("start=0", "start=9", "", "start is '9'"),
        ("end=3", "end=2", "/arcs/2", "is at state 3, which reaches no final"),
        ("v=2", "v=2 L=sub", "", "sublattices"),
        ("lmscale", "base=0.5\nlmscale", "/base", "base is 0.5"),
        ("lmscale", "dir=x\nlmscale", "/dir", "dir is 'x'; need f or b"),
        ("lmscale", "tscale=0\nlmscale", "/tscale", "tscale is 0; need a number above 0"),
        ("t=0.5", "t=soon", "/nodes/1", "line 9: node 1 has t= 'soon'; need a number"),
        ("p=0.25", "r=1 p=0\nprscale=inf", "/prscale", "prscale is inf; need a number"),
        ("lmscale=14.00", "lmscale", "", "line 4: has 'lmscale'; need name=value"),
        ("E=3 a=-4", "E=3 W=x a=-4", "/arcs/3", "has word 'x', and its node has '</s>'"),
    ],
)
def test_a_bad_lattice_is_refused_where_it_is_bad(
    before: str, after: str, pointer: str, message: str
) -> None:
    assert before in ON_NODES
    with pytest.raises(LatticeError, match=message) as caught:
        read(ON_NODES.replace(before, after))
    assert caught.value.pointer == pointer


def test_two_ends_are_refused_where_the_header_names_none() -> None:
    text = "N=3 L=2\nI=0\nI=1\nI=2\nJ=0 S=0 E=1\nJ=1 S=0 E=2\n"
    with pytest.raises(LatticeError, match="2 nodes that no link leaves"):
        read(text)
    with pytest.raises(LatticeError, match="0 nodes that no link enters"):
        read("N=2 L=2\nI=0\nI=1\nJ=0 S=0 E=1\nJ=1 S=1 E=0\n")
    with pytest.raises(LatticeError, match="no nodes"):
        read("N=0 L=1\nJ=0 S=0 E=0\n")


def test_ids_without_words_cannot_be_written() -> None:
    with pytest.raises(LatticeError, match="HTK needs words"):
        HTK.write([make_lattice([(0, 1, [1], 0.0, 0.0)], symbols=None)])


def test_real_lattices_of_two_recognizers_come_back_in_every_format(shared_data: Path) -> None:
    folder = shared_data / "lattices"
    files = sorted(folder.glob("*/*.gz"))
    if not files:
        pytest.skip(f"no lattices in {folder}")
    for path in files[::20]:
        (lattice,) = read_lattices(path)
        (again,) = HTK.read(HTK.write([lattice]), ReadOptions())
        for name in ("src", "dst", "am", "graph"):
            np.testing.assert_array_equal(getattr(again, name), getattr(lattice, name))
        assert words_of(again) == words_of(lattice)
        assert again.header == lattice.header
        for name, column in {**lattice.arc_attributes, **lattice.state_attributes}.items():
            other = {**again.arc_attributes, **again.state_attributes}[name]
            np.testing.assert_array_equal(other, column)
        for one in LATTICE_FORMATS.values():
            options = ReadOptions(symbols=lattice.symbols)
            (converted,) = one.read(one.write([lattice]), options)
            assert converted.num_arcs in (lattice.num_arcs, lattice.num_arcs + 1)
            total = (lattice.am + lattice.graph).sum()
            assert float((converted.am + converted.graph).sum()) == pytest.approx(total, rel=1e-6)


def words_of(lattice: Lattice) -> list[str]:
    assert lattice.symbols is not None
    return [lattice.symbols[word] for word in lattice.words.values.tolist()]


def test_every_real_lattice_is_read(shared_data: Path) -> None:
    files = sorted((shared_data / "lattices").glob("*/*.gz"))
    if not files:
        pytest.skip("no lattices beside the checkout")
    arcs = [read_lattices(path)[0].num_arcs for path in files]
    assert min(arcs) > 0
