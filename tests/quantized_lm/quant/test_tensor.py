"""Claims about QuantizedTensor."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor


def small_tensor(**changes: Any) -> QuantizedTensor:
    """Two rows of five 2-bit weights, in groups of three."""
    tensor = QuantizedTensor.from_codes(
        np.array([[0, 1, 2, 3, 0], [3, 3, 3, 0, 1]], np.uint8),
        np.array([[0.5, 2.0], [0.25, 1.0]], np.float16),
        np.array([-3, -1, 1, 3], np.int8),
        format="2bit",
        group_size=3,
    )
    return dataclasses.replace(tensor, **changes)


def test_a_weight_is_its_level_times_the_scale_of_its_group() -> None:
    expected = [[-1.5, -0.5, 0.5, 6.0, -6.0], [0.75, 0.75, 0.75, -3.0, -1.0]]
    np.testing.assert_array_equal(small_tensor().dequantize(), np.array(expected, np.float32))


def test_bits_per_weight_count_words_scales_and_levels() -> None:
    tensor = small_tensor()
    assert tensor.size_bytes == 2 * 4 + 4 * 2 + 4
    assert tensor.bits_per_weight == 8 * 20 / 10


def test_codes_come_back_and_no_group_size_means_one_scale_per_row() -> None:
    codes = np.array([[0, 2, 1]], np.uint8)
    tensor = QuantizedTensor.from_codes(
        codes, np.ones((1, 1), np.float16), np.array([-1, 0, 1], np.int8), format="ternary"
    )
    assert tensor.group_size == 3
    np.testing.assert_array_equal(tensor.codes(), codes)


def test_a_format_may_be_used_with_fewer_levels() -> None:
    tensor = small_tensor(levels=np.array([-64, -8, 1, 127], np.int8))
    assert tensor.dequantize()[0, 0] == -32.0
    with pytest.raises(FormatError, match="code 3 has no level"):
        small_tensor(levels=np.array([-1, 0, 1], np.int8))


def test_a_table_of_256_levels_needs_no_code_check() -> None:
    tensor = QuantizedTensor.from_codes(
        np.array([[0, 255]], np.uint8),
        np.ones((1, 1), np.float16),
        np.array(FORMATS["8bit"].levels, np.int8),
        format="8bit",
    )
    np.testing.assert_array_equal(tensor.dequantize(), [[-128.0, 127.0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "3bit"}, "no packed format"),
        ({"shape": (0, 5)}, "at least one row"),
        ({"group_size": 0}, "need 1 to 5"),
        ({"group_size": 6}, "need 1 to 5"),
        ({"words": np.zeros((2, 2), np.uint32)}, "words is uint32"),
        ({"words": np.zeros((2, 1), np.int32)}, "words is int32"),
        ({"scale": np.ones((2, 2), np.float32)}, "scale is float32"),
        ({"scale": np.ones((2, 1), np.float16)}, "scale is float16"),
        *(
            (
                {"scale": np.array([[1, 1], [1, scale]], np.float16)},
                rf"scale\[1, 1\] is {scale}; need finite numbers above 0",
            )
            for scale in (np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0)
        ),
        ({"levels": np.zeros(4, np.int16)}, "levels are int16"),
        ({"levels": np.zeros((2, 2), np.int8)}, "levels are int8"),
        ({"levels": np.zeros(0, np.int8)}, "needs 1 to 4"),
        ({"levels": np.zeros(5, np.int8)}, "needs 1 to 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        small_tensor(**changes)
