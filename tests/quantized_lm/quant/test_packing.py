"""Claims about codes and words."""

from __future__ import annotations

import hypothesis.extra.numpy as st_numpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.packing import pack_codes, unpack_codes


@st.composite
def formats_and_codes(draw: st.DrawFn) -> tuple[str, NDArray[np.uint8]]:
    name = draw(st.sampled_from(list(FORMATS)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 70)))
    codes = st.integers(0, FORMATS[name].num_levels - 1)
    return name, draw(st_numpy.arrays(np.uint8, shape, elements=codes))


@given(formats_and_codes())
def test_unpack_undoes_pack(case: tuple[str, NDArray[np.uint8]]) -> None:
    name, codes = case
    words = pack_codes(codes, FORMATS[name])
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(unpack_codes(words, FORMATS[name], codes.shape[1]), codes)


@pytest.mark.parametrize(
    ("name", "codes", "words"),
    [
        ("1bit", [1, 0, 1, 1], [0b1101]),
        ("1bit", [0] * 32 + [1], [0, 1]),
        ("2bit", [3, 0, 2, 1], [0b01_10_00_11]),
        ("4bit", [15, 1, 0, 0, 0, 0, 0, 2], [0x2000001F]),
        ("8bit", [255, 2, 0, 128, 7], [0x800002FF, 7]),
        ("ternary", [2, 1, 0, 1, 2], [2 + 1 * 3 + 0 * 9 + 1 * 27 + 2 * 81]),
        ("ternary", [0] * 5 + [1, 2], [(1 + 2 * 3) << 8]),
    ],
)
def test_the_layout_on_disk_is_this(name: str, codes: list[int], words: list[int]) -> None:
    packed = pack_codes(np.array([codes], np.uint8), FORMATS[name])
    np.testing.assert_array_equal(packed, np.array([words], np.uint32))


@pytest.mark.parametrize("name", FORMATS)
def test_a_word_of_highest_codes_comes_back(name: str) -> None:
    row_format = FORMATS[name]
    codes = np.full((2, row_format.codes_per_word), row_format.num_levels - 1, np.uint8)
    words = pack_codes(codes, row_format)
    assert words.shape == (2, 1)
    np.testing.assert_array_equal(unpack_codes(words, row_format, codes.shape[1]), codes)


@pytest.mark.parametrize("name", ["1bit", "ternary", "2bit", "4bit"])
def test_a_code_out_of_range_is_refused(name: str) -> None:
    codes = np.array([[0, FORMATS[name].num_levels]], np.uint8)
    with pytest.raises(FormatError, match="out of range"):
        pack_codes(codes, FORMATS[name])


@pytest.mark.parametrize("codes", [np.zeros(3, np.uint8), np.zeros((1, 3), np.int64)])
def test_only_uint8_matrices_are_packed(codes: NDArray[np.uint8]) -> None:
    with pytest.raises(FormatError, match="uint8 matrix"):
        pack_codes(codes, FORMATS["2bit"])


@pytest.mark.parametrize(
    "words", [np.zeros((1, 2), np.uint32), np.zeros((1, 1), np.int32), np.zeros(1, np.uint32)]
)
def test_words_of_another_shape_or_type_are_refused(words: NDArray[np.uint32]) -> None:
    with pytest.raises(FormatError, match="uint32 matrix 1 wide"):
        unpack_codes(words, FORMATS["2bit"], 16)


def test_a_byte_that_is_not_five_trits_is_refused() -> None:
    with pytest.raises(FormatError, match="byte 243"):
        unpack_codes(np.array([[243]], np.uint32), FORMATS["ternary"], 5)
