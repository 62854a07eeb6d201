"""What the manifest says of one tensor, and what follows for memory. Knows no arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantized_lm.errors import FormatError
from quantized_lm.quant.clusters import MAX_CLUSTERS
from quantized_lm.quant.formats import get_format
from quantized_lm.quant.rans import TABLE_BYTES

FLOATS = "float32"
FLOAT_BYTES = 4
_MAX_WEIGHTS = 1 << 40  # of one tensor; sums of such numbers stay exact in float64


@dataclass(frozen=True)
class TensorEntry:
    """One tensor on disk.

    Attributes:
        format: key of FORMATS, or "float32".
        group_size: 0 is unpacked.
        size_bytes: what it takes in its arrays.
        bits_per_weight: those bytes over its weights.
        coding: key of CODINGS.
        num_levels: length of its level table; 0 if unpacked, or if the table itself says it.

    Raises:
        FormatError: there is no such tensor.
    """

    format: str
    shape: tuple[int, ...]
    group_size: int
    size_bytes: int
    bits_per_weight: float
    coding: str = ""
    num_levels: int = 0

    def __post_init__(self) -> None:
        """Refuse what nothing can be computed of."""
        if min(self.shape, default=1) < 1 or math.prod(self.shape) > _MAX_WEIGHTS:
            raise FormatError(
                f"shape is {self.shape}; need lengths of 1 or more and at most {_MAX_WEIGHTS} "
                "weights"
            )
        if self.size_bytes < 1 or not math.isfinite(self.bits_per_weight):
            raise FormatError(
                f"there are {self.size_bytes} bytes, {self.bits_per_weight} bits per weight; need "
                "1 byte or more"
            )
        if self.group_size == 0:
            if (self.format, self.coding, self.num_levels) != (FLOATS, "", 0):
                raise FormatError(
                    f"group_size is 0, format {self.format!r}, coding {self.coding!r}, "
                    f"{self.num_levels} levels; what is unpacked is {FLOATS} and has neither"
                )
            return
        most = get_format(self.format).num_levels
        num_columns = self.matrix_shape[1]
        if not (1 <= self.group_size <= num_columns and 0 <= self.num_levels <= most):
            raise FormatError(
                f"group_size is {self.group_size}, with {self.num_levels} levels; need 1 to "
                f"{num_columns}, and at most {most} levels"
            )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """`shape` of what is packed.

        Raises:
            FormatError: it is no matrix.
        """
        if len(self.shape) != 2:
            raise FormatError(f"shape is {self.shape}; need two dimensions to be packed")
        return self.shape[0], self.shape[1]

    @property
    def packed_bytes(self) -> int:
        """Bytes of words, scales and levels, whatever the coding."""
        if not self.coding:
            return self.size_bytes
        row_format = get_format(self.format)
        return row_format.matrix_bytes(self.matrix_shape, self.group_size, self.num_levels)

    @property
    def packed_bits_per_weight(self) -> float:
        """`packed_bytes` over weights."""
        return 8 * self.packed_bytes / math.prod(self.shape)

    @property
    def decoded_bytes(self) -> int:
        """What reading it takes, by its shape alone: float32, or packed with a byte for each code.

        A file says little of it: a coded matrix of one level may be a million times as large, and
        a small one have a table for each pair of clusters.
        """
        num_weights = math.prod(self.shape)
        if self.group_size == 0:
            return FLOAT_BYTES * num_weights
        row_format = get_format(self.format)
        clusters = [min(length, MAX_CLUSTERS) for length in self.matrix_shape]
        tables = TABLE_BYTES * math.prod(clusters) if self.coding else 0
        return (
            num_weights
            + tables
            + row_format.matrix_bytes(self.matrix_shape, self.group_size, self.num_levels)
        )
