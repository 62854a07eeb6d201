"""Whatever bytes a reader gets, it answers with lattices or with an error of ours."""

from __future__ import annotations

import gzip
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantized_lm.errors import DataError, LatticeError
from quantized_lm.lattice.files import unpack
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.lattice import Lattice, require_valid
from quantized_lm.lattice.ragged import ragged

from .format_cases import OPTIONS, make_lattice, small

NAMES = list(LATTICE_FORMATS)
_TOKENS = (
    b"-1 nan inf -inf 1e999 -1e999 1e39 99999999999999999999 2147483648 2147483647 4000000000 0 "
    b"1_0 "
    b"1.5 [ ] , _ = \" ' \\ # <eps> W= J= I= N=9 base=0 base=1 start=7 end=0 null true [] {} [[]]"
).split()


def full() -> Lattice:
    """A lattice with an attribute of each kind."""
    alignment = ragged([2, 0, 1, 1], np.array([7, 8, 9, 3], np.int32))
    labels = np.array([5, 6, 7, -1], np.int32)
    return small(alignment=alignment, labels=labels, p=np.array([0.5, 0.5, 1.0, 0.25]))


def several(name: str) -> list[Lattice]:
    two_words = make_lattice([(0, 1, [1, 2], -1.0, -0.5), (1, 2, [], -0.1, 0.0)], utterance="u2")
    return [full(), two_words] if LATTICE_FORMATS[name].holds_many else [full()]


_VALID = {name: LATTICE_FORMATS[name].write(several(name)) for name in NAMES}
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut", "token", "copy", "int"]),
        st.floats(0, 1),
        st.integers(0, 255),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[str, float, int, int]]) -> bytes:
    data = bytearray(content)
    for kind, place, value, length in edits:
        at = int(place * len(data))
        changed = {
            "set": bytes([value]),
            "insert": bytes([value]) + data[at : at + 1],
            "delete": b"",
            "token": b" " + _TOKENS[value % len(_TOKENS)] + b" ",
            "copy": data[at : at + length] * 2,
            "int": (value - 2 << 8 * (length % 8)).to_bytes(10, "little", signed=True)[:4],
        }
        if kind == "cut":
            del data[at:]
        else:
            data[at : at + {"delete": length, "copy": length, "int": 4}.get(kind, 1)] = changed[
                kind
            ]
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
@given(edits=_EDITS)
@settings(max_examples=400, deadline=2000)
def test_damaged_bytes_give_valid_lattices_or_an_error_of_ours(
    name: str, edits: list[tuple[str, float, int, int]]
) -> None:
    try:
        lattices = LATTICE_FORMATS[name].read(edited(_VALID[name], edits), OPTIONS)
    except LatticeError:
        return
    for lattice in lattices:
        require_valid(lattice)


@pytest.mark.parametrize("name", NAMES)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
@settings(max_examples=100, deadline=2000)
def test_any_bytes_give_an_error_of_ours(name: str, content: bytes) -> None:
    try:
        LATTICE_FORMATS[name].read(content, ReadOptions())
    except LatticeError:
        return


@pytest.mark.parametrize("name", NAMES)
@given(edits=_EDITS)
@settings(max_examples=100, deadline=2000)
def test_what_damaged_bytes_still_say_can_be_written_again(
    name: str, edits: list[tuple[str, float, int, int]]
) -> None:
    one = LATTICE_FORMATS[name]
    try:
        lattices = one.read(edited(_VALID[name], edits), OPTIONS)
        content = one.write(lattices)
    except LatticeError:
        return
    assert len(one.read(content, OPTIONS)) == len(lattices)


@pytest.mark.parametrize(
    "content",
    [
        b'I=0 W="' + b"a" * 1_000_000,
        b"I=0 W='" + b"a=\\'" * 200_000,
        b"u\n0 1 5 1,1," + b"_" * 1_000_000,
        b"u\n" + b" \r" * 500_000,
        b"0 1 7 " + b"[ " * 500_000 + b"-1\n1\n",
        b"0 1 7 " + b"9" * 1_000_000 + b"\n1\n",
        b"[" * 1_000_000,
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_long_line_takes_no_time(name: str, content: bytes) -> None:
    began = time.process_time()
    with pytest.raises(LatticeError):
        LATTICE_FORMATS[name].read(content, ReadOptions())
    assert time.process_time() - began < 5


@given(edits=_EDITS)
@settings(max_examples=200, deadline=2000)
def test_damaged_gzip_gives_bytes_or_an_error_of_ours(
    edits: list[tuple[str, float, int, int]],
) -> None:
    try:
        unpack(edited(gzip.compress(_VALID["htk"], mtime=0), edits), limit=1 << 20)
    except DataError:
        return
