"""The one table of packed formats. Knows nothing of tensors, files or kernels.

A format says how many codes share a 32-bit word. A code indexes a small table of int8 levels, so
uniform, balanced, power-of-two and learned tables all use the same packing and the same kernels.
Every format follows one rule: a byte is a number in base `num_levels`, its lowest digit first, and
a word is four bytes, little-endian. For 1, 2, 4 and 8 bits that is "lowest bits first".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quantized_lm.errors import FormatError

BYTES_PER_WORD = 4
BYTES_PER_SCALE = 2
QUAD = 4  # columns whose subset sums a look-up kernel keeps in one byte


@dataclass(frozen=True)
class PackedFormat:
    """One way of storing codes.

    Attributes:
        name: key in FORMATS.
        num_levels: how many codes there are, and the base of a byte's digits.
        codes_per_byte: digits held by one byte; num_levels ** codes_per_byte <= 256.
        activation_rule: key in ACTIVATION_RULES: how int8 kernels round what they multiply with.
        level_tables: named int8 level tables, ascending, the default one first. A table may have
            fewer levels than there are codes.
    """

    name: str
    num_levels: int
    codes_per_byte: int
    activation_rule: str
    level_tables: Mapping[str, tuple[int, ...]]

    @property
    def codes_per_word(self) -> int:
        """Codes in one uint32 word."""
        return BYTES_PER_WORD * self.codes_per_byte

    @property
    def stored_bits(self) -> float:
        """Nominal bits per code on disk, without scales, level table and row padding."""
        return 8 / self.codes_per_byte

    @property
    def levels(self) -> tuple[int, ...]:
        """The default level table."""
        return next(iter(self.level_tables.values()))

    def words_per_row(self, num_columns: int) -> int:
        """Words that hold one row of `num_columns` codes; the last one may be part padding."""
        return -(-num_columns // self.codes_per_word)

    def matrix_bytes(self, shape: tuple[int, int], group_size: int, num_levels: int) -> int:
        """`QuantizedTensor.size_bytes` of a matrix (N, K), without making it.

        N * (4 * words_per_row(K) + 2 * ceil(K / group_size)) + num_levels.
        """
        num_rows, num_columns = shape
        row_bytes = BYTES_PER_WORD * self.words_per_row(num_columns)
        row_bytes += BYTES_PER_SCALE * -(-num_columns // group_size)
        return num_rows * row_bytes + num_levels


def _format(
    name: str,
    num_levels: int,
    codes_per_byte: int,
    activation_rule: str,
    **level_tables: tuple[int, ...],
) -> PackedFormat:
    return PackedFormat(
        name, num_levels, codes_per_byte, activation_rule, MappingProxyType(level_tables)
    )


# "normal" is the 16-level Lloyd-Max quantizer of a standard Gaussian, found by iterating its two
# conditions (levels are centroids, thresholds are midpoints) to convergence:
# +-{0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259}, times 127 / 2.73259,
# rounded to integers.
_NORMAL_16 = (-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127)
# Zero and powers of two (Leng et al., "Extremely low bit neural network: squeeze the last bit out
# with ADMM", AAAI 2018), as many as 16 codes hold.
_POWERS_15 = (-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64)


def _symmetric(largest: int) -> tuple[int, ...]:
    """All integers up to `largest` in size: {-largest, .., largest}."""
    return tuple(range(-largest, largest + 1))


# "quinary" and "septenary" leave codes unused: they are for codes stored at their entropy.
FORMATS: Mapping[str, PackedFormat] = MappingProxyType(
    {
        row.name: row
        for row in (
            _format("1bit", 2, 8, "quads", sign=(-1, 1)),
            _format("ternary", 3, 5, "quads", ternary=(-1, 0, 1)),
            _format("2bit", 4, 4, "quads", balanced=(-3, -1, 1, 3), threelevel=(-1, 0, 1)),
            _format(
                "4bit",
                16,
                2,
                "absmax",
                uniform=tuple(range(-15, 16, 2)),
                normal=_NORMAL_16,
                symmetric=_symmetric(7),
                powers=_POWERS_15,
                quinary=_symmetric(2),
                septenary=_symmetric(3),
            ),
            _format(
                "8bit",
                256,
                1,
                "absmax",
                uniform=tuple(range(-128, 128)),
                symmetric=_symmetric(127),
            ),
        )
    }
)


def get_format(name: str) -> PackedFormat:
    """Look a format up by name.

    Raises:
        FormatError: there is no such format.
    """
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(FORMATS)
        raise FormatError(f"no packed format is named {name!r}; known are {known}") from None


@dataclass(frozen=True)
class Grid:
    """The points a quantizer may choose from: a format, its levels, and how far one scale reaches.

    Attributes:
        format: key in FORMATS.
        levels: int8 level table; any length from 1 to the format's num_levels, any order.
        group_size: columns that share one scale; None for one scale per row.
    """

    format: str
    levels: tuple[int, ...]
    group_size: int | None = None

    @classmethod
    def named(
        cls, format_name: str, table: str | None = None, group_size: int | None = None
    ) -> Grid:
        """Take one of the format's own level tables, by default its first.

        Raises:
            FormatError: there is no such format or level table.
        """
        row = get_format(format_name)
        if table is None:
            return cls(format_name, row.levels, group_size)
        if table not in row.level_tables:
            known = ", ".join(row.level_tables)
            raise FormatError(f"{format_name} has no level table {table!r}; known are {known}")
        return cls(format_name, row.level_tables[table], group_size)

    @classmethod
    def parse(cls, choice: str) -> Grid:
        """Read a choice as recipes write it: "FORMAT" or "FORMAT:TABLE", such as "4bit:normal".

        Raises:
            FormatError: there is no such format or level table.
        """
        format_name, _, table = choice.partition(":")
        return cls.named(format_name, table or None)
