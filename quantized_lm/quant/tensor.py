"""QuantizedTensor: one weight matrix as packed codes, scales and levels. Knows no kernels or files.

weight[n, k] = levels[code[n, k]] * scale[n, k // group_size]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import PackedFormat, get_format
from quantized_lm.quant.packing import pack_codes, unpack_codes


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A weight matrix of N rows (outputs) and K columns (inputs).

    Attributes:
        format: key in FORMATS.
        shape: (N, K).
        group_size: columns that share a scale, 1 to K; K means one scale per row. The last
            group of a row may be shorter.
        words: (N, W) uint32, codes as pack_codes lays them out.
        scale: (N, G) float16, G = ceil(K / group_size), finite and above 0.
        levels: (L,) int8, 1 <= L <= num_levels; every code is below L.

    Raises:
        FormatError: the parts do not fit together, or a scale is no finite number above 0.
    """

    format: str
    shape: tuple[int, int]
    group_size: int
    words: NDArray[np.uint32]
    scale: NDArray[np.float16]
    levels: NDArray[np.int8]

    def __post_init__(self) -> None:
        """Refuse parts that do not fit, so that no kernel has to check again."""
        row_format = self.packed_format
        num_rows, num_columns = self.shape
        if num_rows < 1 or num_columns < 1:
            raise FormatError(f"shape is {self.shape}; need at least one row and one column")
        if not 1 <= self.group_size <= num_columns:
            raise FormatError(f"group_size is {self.group_size}; need 1 to {num_columns}")
        _check("words", self.words, np.uint32, (num_rows, row_format.words_per_row(num_columns)))
        _check("scale", self.scale, np.float16, (num_rows, self.num_groups))
        if self.levels.dtype != np.int8 or self.levels.ndim != 1:
            raise FormatError(f"levels are {self.levels.dtype} {self.levels.shape}; need (L,) int8")
        if not 1 <= len(self.levels) <= row_format.num_levels:
            raise FormatError(
                f"there are {len(self.levels)} levels; {self.format} needs 1 to "
                f"{row_format.num_levels}"
            )
        unusable = ~(np.isfinite(self.scale) & (self.scale > 0))
        if unusable.any():
            row, group = np.argwhere(unusable)[0]
            raise FormatError(
                f"scale[{row}, {group}] is {self.scale[row, group]}; need finite numbers above 0"
            )
        self._check_codes(row_format)

    def _check_codes(self, row_format: PackedFormat) -> None:
        if len(self.levels) == row_format.num_levels == 1 << (8 // row_format.codes_per_byte):
            return  # Every bit pattern is a valid code.
        codes = unpack_codes(self.words, row_format, self.shape[1])
        if int(codes.max()) >= len(self.levels):
            raise FormatError(f"code {int(codes.max())} has no level; there are {len(self.levels)}")

    @classmethod
    def from_codes(
        cls,
        codes: NDArray[np.uint8],
        scale: NDArray[np.float16],
        levels: NDArray[np.int8],
        *,
        format: str,  # noqa: A002 - named after the field
        group_size: int | None = None,
    ) -> QuantizedTensor:
        """Pack a matrix of codes.

        Args:
            codes: (N, K) uint8.
            scale: (N, G) float16.
            levels: (L,) int8.
            format: key in FORMATS.
            group_size: columns that share a scale; None for one scale per row.

        Raises:
            FormatError: the parts do not fit together.
        """
        words = pack_codes(codes, get_format(format))
        num_rows, num_columns = codes.shape
        size = num_columns if group_size is None else group_size
        return cls(format, (num_rows, num_columns), size, words, scale, levels)

    @property
    def packed_format(self) -> PackedFormat:
        """The row of FORMATS."""
        return get_format(self.format)

    @property
    def num_groups(self) -> int:
        """Scales in one row."""
        return -(-self.shape[1] // self.group_size)

    @property
    def size_bytes(self) -> int:
        """Bytes of words, scales and levels: everything this tensor puts on disk."""
        return self.words.nbytes + self.scale.nbytes + self.levels.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights, scales, level table and row padding included."""
        return 8 * self.size_bytes / (self.shape[0] * self.shape[1])

    def codes(self) -> NDArray[np.uint8]:
        """Unpack every code: (N, K) uint8."""
        return unpack_codes(self.words, self.packed_format, self.shape[1])

    def dequantize(self) -> NDArray[np.float32]:
        """Compute the whole matrix: (N, K) float32."""
        group_of_column = np.arange(self.shape[1]) // self.group_size
        # Exact: 8 bits of level times 11 bits of scale fit in the 24 bits of float32.
        weight = self.levels.astype(np.float32)[self.codes()]
        weight *= self.scale.astype(np.float32)[:, group_of_column]
        return weight


def _check(name: str, array: NDArray[np.generic], dtype: type, shape: tuple[int, int]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise FormatError(
            f"{name} is {array.dtype} {array.shape}; need {np.dtype(dtype).name} {shape}"
        )
