"""k2's text: written as it was read, and bad lines that are named."""

from __future__ import annotations

import pytest

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.lattice import Lattice

TEXT = """0 1 7 3 -1.5
0 1 8 5 -2.5
1 2 9 4 -0.125
2 3 -1 -1 -0.25
3
"""


def read_text(text: str) -> Lattice:
    (lattice,) = LATTICE_FORMATS["k2-text"].read(text.encode(), ReadOptions())
    return lattice


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "0 1 3 -1\n1 2 -1 0\n2\n",
        "0 1 7 [ 3 4] -1.5\n1 2 0 [ ] -1\n2 3 -1 [ -1] 0\n3\n",
        "0 1 7 3 1 -1.5\n1 2 -1 -1 -1 0\n2\n",
        "0 1 7 1 [ 3 4] -1.5\n1 2 -1 -1 [ -1] 0\n2\n",
    ],
)
def test_text_is_written_as_it_was_read(text: str) -> None:
    lattice = read_text(text)
    assert LATTICE_FORMATS["k2-text"].write([lattice]).decode() == text
    assert LATTICE_FORMATS["k2-text"].drops([lattice]) == []


@pytest.mark.parametrize(
    ("before", "after", "pointer", "message"),
    [
        ("1 2 9 4 -0.125", "1 2 9 4 x", "/arcs/2", "line 3: arc 2 has score 'x'"),
        ("1 2 9 4 -0.125", "1 2 9 4 nan", "/arcs/2", "score nan"),
        ("1 2 9 4 -0.125", "1 2 9 4", "/arcs/2", "line 3: arc 2 has 4 columns; need 5"),
        ("1 2 9 4 -0.125", "1 2 9 4_0 -0.1", "/arcs/2", "label '4_0'"),
        ("1 2 9 4 -0.125", "1 2 9 [ 4 ] -0.1", "/arcs/0", "line 1: arc 0 has 0 lists"),
        ("\n3\n", "\n4\n", "/arcs", "line 5: is '4'; need the final state alone, 3"),
    ],
)
def test_a_bad_line_of_text_is_named(before: str, after: str, pointer: str, message: str) -> None:
    with pytest.raises(LatticeError, match=message.replace("[", r"\[")) as caught:
        read_text(TEXT.replace(before, after))
    assert caught.value.pointer == pointer


def test_a_bad_word_in_a_list_points_to_its_arc() -> None:
    with pytest.raises(LatticeError, match="line 2: arc 1 has label 'x'") as caught:
        read_text("0 1 7 [ 3 4 ] -1.5\n1 2 0 [ x ] -1\n2 3 -1 [ -1 ] 0\n3\n")
    assert caught.value.pointer == "/arcs/1"
