"""What an entry refuses, and how much memory it says its tensor takes."""

from __future__ import annotations

import dataclasses
import math

import pytest

from quantized_lm.errors import FormatError
from quantized_lm.tensor_entry import TensorEntry

MATRIX = TensorEntry("4bit", (64, 96), 48, 640, 1.25, "rans", 5)
FLOATS = TensorEntry("float32", (96,), 0, 384, 32.0)


@pytest.mark.parametrize(
    ("entry", "changes", "message"),
    [
        (MATRIX, {"shape": (-1, 96)}, r"shape is \(-1, 96\); need lengths of 1 or more"),
        (MATRIX, {"shape": (0, 96)}, r"shape is \(0, 96\)"),
        (MATRIX, {"shape": (1 << 30, 1 << 30)}, "at most 1099511627776 weights"),
        (MATRIX, {"shape": (64 * 96,)}, "need two dimensions to be packed"),
        (MATRIX, {"format": "5bit"}, "no packed format is named '5bit'"),
        (MATRIX, {"group_size": 97}, "group_size is 97, with 5 levels; need 1 to 96"),
        (MATRIX, {"group_size": -1}, "group_size is -1"),
        (MATRIX, {"num_levels": 17}, "at most 16 levels"),
        (MATRIX, {"group_size": 0}, "what is unpacked is float32"),
        (MATRIX, {"size_bytes": 0}, "there are 0 bytes"),
        (MATRIX, {"bits_per_weight": math.nan}, "nan bits per weight"),
        (FLOATS, {"coding": "rans"}, "coding 'rans'"),
        (FLOATS, {"num_levels": 2}, "2 levels"),
    ],
)
def test_what_is_no_tensor_is_refused(
    entry: TensorEntry, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        dataclasses.replace(entry, **changes)  # type: ignore[arg-type]


def test_what_is_decoded_has_a_byte_for_each_code_beside_what_is_packed() -> None:
    assert MATRIX.packed_bytes == 64 * (48 + 2 * 2) + 5
    tables = 8 * 8 * ((1 << 14) + 2 * 8 * 256)  # of each pair of clusters: slots, and two of int64
    assert MATRIX.decoded_bytes == 64 * 96 + MATRIX.packed_bytes + tables
    assert FLOATS.decoded_bytes == 384
