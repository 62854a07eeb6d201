"""Codes to words and back, in numpy: the canonical layout on disk. Knows no levels or scales.

Rows stand alone: each starts on a new word, and codes that pad its last word are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import BYTES_PER_WORD, PackedFormat

_LITTLE_ENDIAN_WORD = np.dtype("<u4")


def pack_codes(codes: NDArray[np.uint8], row_format: PackedFormat) -> NDArray[np.uint32]:
    """Pack codes row by row: byte = sum over digits i of code[i] * num_levels ** i.

    Args:
        codes: (N, K) uint8, each below row_format.num_levels.
        row_format: row of FORMATS.

    Returns:
        (N, ceil(K / codes_per_word)) uint32.

    Raises:
        FormatError: codes are not a uint8 matrix, or one is out of range.
    """
    if codes.ndim != 2 or codes.dtype != np.uint8:
        raise FormatError(f"codes are {codes.dtype} {codes.shape}; need a uint8 matrix")
    if codes.size and int(codes.max()) >= row_format.num_levels:
        raise FormatError(
            f"code {int(codes.max())} is out of range; {row_format.name} needs codes below "
            f"{row_format.num_levels}"
        )
    num_rows, num_columns = codes.shape
    num_words = row_format.words_per_row(num_columns)
    padded = np.zeros((num_rows, num_words * row_format.codes_per_word), np.uint8)
    padded[:, :num_columns] = codes
    digits = padded.reshape(num_rows, num_words * BYTES_PER_WORD, row_format.codes_per_byte)
    packed = np.zeros(digits.shape[:2], np.uint8)
    # Horner's rule, highest digit first; no step can pass 255 because the codes were checked.
    for digit in range(row_format.codes_per_byte - 1, -1, -1):
        packed *= np.uint8(row_format.num_levels & 0xFF)
        packed += digits[:, :, digit]
    return packed.view(_LITTLE_ENDIAN_WORD).astype(np.uint32, copy=False)


def unpack_codes(
    words: NDArray[np.uint32], row_format: PackedFormat, num_columns: int
) -> NDArray[np.uint8]:
    """Undo pack_codes.

    Args:
        words: (N, ceil(num_columns / codes_per_word)) uint32.
        row_format: row of FORMATS.
        num_columns: K, codes wanted from each row.

    Returns:
        (N, K) uint8, each below num_levels.

    Raises:
        FormatError: words are not a uint32 matrix of that width, or a byte holds a number that
            pack_codes never writes (only possible for ternary).
    """
    expected = row_format.words_per_row(num_columns)
    if words.ndim != 2 or words.dtype != np.uint32 or words.shape[1] != expected:
        raise FormatError(
            f"words are {words.dtype} {words.shape}; {num_columns} columns of {row_format.name} "
            f"need a uint32 matrix {expected} wide"
        )
    num_bytes = expected * BYTES_PER_WORD
    little_endian = np.ascontiguousarray(words, dtype=_LITTLE_ENDIAN_WORD)
    packed = little_endian.view(np.uint8).reshape(-1, num_bytes)
    num_values = row_format.num_levels**row_format.codes_per_byte
    if packed.size and int(packed.max()) >= num_values:
        raise FormatError(
            f"byte {int(packed.max())} is not a {row_format.name} byte; need below {num_values}"
        )
    place_values = row_format.num_levels ** np.arange(row_format.codes_per_byte)
    digits_of_byte = (np.arange(256)[:, None] // place_values % row_format.num_levels).astype(
        np.uint8
    )
    codes = digits_of_byte[packed].reshape(len(words), num_bytes * row_format.codes_per_byte)
    return np.ascontiguousarray(codes[:, :num_columns])
