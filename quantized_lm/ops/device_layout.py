"""Weights as the GPU's kernels read them, packed or expanded; made once, from canonical codes.

Packed, K-planar: along K a row is cut into blocks of planes * tile codes, planes = 8 / bits, each
in `tile` bytes. Plane p, position i of a block is column p * tile + i of it, and sits in the
block's 32-bit word i // 4 from bit 4 (i % 4) + 16 (p & 1) + bits (p >> 1) on. So a kernel loads
each byte once, plane p of it meets `tile` neighboring columns of x, and four codes stand in the
four low nibbles of a word, where one `prmt` instruction looks them all up in a table of levels.
Expanded: a byte is a level, K contiguous; one plane. Lossless, as levels are int8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.quant.activations import ACTIVATION_RULES
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor

# "auto" lets the model's kind and the device's memory decide; see `GpuBackend.reside`.
ResidencyChoice = Literal["auto", "packed", "expanded"]
RESIDENCIES: tuple[ResidencyChoice, ...] = get_args(ResidencyChoice)
EXPANDED_BITS = 8
LEVEL_TABLE_SIZE = 16
_WORD_BYTES = 4
_TILE_OF_BITS = {1: 64, 2: 64, 4: 128}
_EXPANDED_TILES = (128, 64, 32)  # the int8 tensor cores take 32 columns at a time
_RULES = tuple(ACTIVATION_RULES)


@dataclass(frozen=True)
class DeviceLayout:
    """How one weight lies in memory; `PackedWeight.layout` holds these numbers in this order.

    Attributes:
        num_rows, num_columns: N, K. group_size: columns that share a scale.
        bits: of one code, 8 for levels themselves.
        tile: bytes of a block. blocks_per_group: blocks of a group of columns.
        rule: index in ACTIVATION_RULES.
    """

    num_rows: int
    num_columns: int
    group_size: int
    bits: int
    tile: int
    blocks_per_group: int
    rule: int

    @property
    def numbers(self) -> tuple[int, ...]:
        """The fields, for an operator."""
        return (
            self.num_rows,
            self.num_columns,
            self.group_size,
            self.bits,
            self.tile,
            self.blocks_per_group,
            self.rule,
        )

    @property
    def planes(self) -> int:
        """Codes of one byte."""
        return 8 // self.bits

    @property
    def num_groups(self) -> int:
        """Scales of a row."""
        return -(-self.num_columns // self.group_size)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.num_groups * self.blocks_per_group * self.tile

    @property
    def is_quads(self) -> bool:
        """Whether what it multiplies with is rounded by rule "quads"."""
        return _RULES[self.rule] == "quads"


@dataclass(frozen=True, eq=False)
class DeviceWeight:
    """A weight, on the host or on the device.

    Attributes:
        words: (N, row_bytes) uint8. scale: (N, G) float32. levels: (16,) int8.
        tables: the levels as four 32-bit words, the first in the lowest byte; for code that is
            made for these levels.
    """

    layout: DeviceLayout
    words: Tensor
    scale: Tensor
    levels: Tensor
    tables: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes."""
        return self.words.nbytes + self.scale.nbytes + self.levels.nbytes

    def to(self, device: torch.device) -> DeviceWeight:
        """The same on a device."""
        parts = (self.words.to(device), self.scale.to(device), self.levels.to(device))
        return DeviceWeight(self.layout, *parts, self.tables)


def lay_out(tensor: QuantizedTensor, *, expands: bool) -> DeviceWeight:
    """Repack a weight. Scales per group are "expanded" always: blocks would be mostly padding."""
    bits = EXPANDED_BITS if expands or tensor.num_groups > 1 else _packed_bits(tensor)
    tile = _tile_of(bits, tensor.group_size)
    block = tile * 8 // bits
    num_rows, num_columns = tensor.shape
    rule = _RULES.index(tensor.packed_format.activation_rule)
    layout = DeviceLayout(
        num_rows, num_columns, tensor.group_size, bits, tile, -(-tensor.group_size // block), rule
    )
    levels = np.zeros(LEVEL_TABLE_SIZE, np.int8)
    codes = tensor.codes()
    if bits == EXPANDED_BITS:
        codes = tensor.levels[codes].view(np.uint8)
    else:
        levels[: len(tensor.levels)] = tensor.levels
    return DeviceWeight(
        layout,
        torch.from_numpy(_pack(_pad_groups(codes, layout), layout)),
        torch.from_numpy(tensor.scale.astype(np.float32)),
        torch.from_numpy(levels),
        tuple(levels.view(np.uint32).tolist()),
    )


def expand(weight: DeviceWeight) -> DeviceWeight:
    """The same weight expanded."""
    layout = weight.layout
    if layout.bits == EXPANDED_BITS:
        return weight
    levels = weight.levels.numpy()[_unpack(weight.words.numpy(), layout)]
    tile = _tile_of(EXPANDED_BITS, layout.group_size)
    wide = DeviceLayout(
        layout.num_rows,
        layout.num_columns,
        layout.group_size,
        EXPANDED_BITS,
        tile,
        -(-layout.group_size // tile),
        layout.rule,
    )
    words = _pad_groups(levels[:, : layout.num_columns].view(np.uint8), wide)
    return DeviceWeight(wide, torch.from_numpy(words), weight.scale, weight.levels, weight.tables)


def stack(parts: list[DeviceWeight]) -> DeviceWeight:
    """Weights that are laid out alike and have the same levels, one below the other."""
    first = parts[0].layout
    numbers = (sum(part.layout.num_rows for part in parts), *first.numbers[1:])
    return DeviceWeight(
        DeviceLayout(*numbers),
        torch.cat([part.words for part in parts]),
        torch.cat([part.scale for part in parts]),
        parts[0].levels,
        parts[0].tables,
    )


def is_alike(one: DeviceWeight, other: DeviceWeight) -> bool:
    """Whether two weights can be stacked."""
    same_numbers = one.layout.numbers[1:] == other.layout.numbers[1:]
    return same_numbers and torch.equal(one.levels, other.levels)


def _packed_bits(tensor: QuantizedTensor) -> int:
    """The fewest of 1, 2, 4, 8 that hold a code; 1 only where it fills whole blocks."""
    needed = (FORMATS[tensor.format].num_levels - 1).bit_length()
    bits = next(bits for bits in (1, 2, 4, 8) if bits >= needed)
    # A smaller tile would do for odd widths, but loads of 32 bytes are not asynchronous.
    return 2 if bits == 1 and tensor.shape[1] % (8 * _TILE_OF_BITS[1]) else bits


def _tile_of(bits: int, group_size: int) -> int:
    if bits in _TILE_OF_BITS:
        return _TILE_OF_BITS[bits]
    return next((tile for tile in _EXPANDED_TILES if group_size % tile == 0), _EXPANDED_TILES[-1])


def _pad_groups(codes: NDArray[np.uint8], layout: DeviceLayout) -> NDArray[np.uint8]:
    """Make every group fill whole blocks: (N, K) to (N, G * padded group)."""
    num_rows, num_columns = codes.shape
    groups, group_size = layout.num_groups, layout.group_size
    whole = np.zeros((num_rows, groups * group_size), np.uint8)
    whole[:, :num_columns] = codes
    padded = layout.blocks_per_group * layout.planes * layout.tile
    if padded == group_size:
        return whole
    filled = np.zeros((num_rows, groups, padded), np.uint8)
    filled[:, :, :group_size] = whole.reshape(num_rows, groups, group_size)
    return filled.reshape(num_rows, groups * padded)


def _shift(plane: int, position: int, bits: int) -> int:
    return 4 * position + 16 * (plane & 1) + bits * (plane >> 1)


def _pack(codes: NDArray[np.uint8], layout: DeviceLayout) -> NDArray[np.uint8]:
    """(N, blocks * planes * tile) to (N, blocks * tile)."""
    if layout.bits == EXPANDED_BITS:
        return codes
    shape = (len(codes), -1, layout.planes, layout.tile // _WORD_BYTES, _WORD_BYTES)
    by_plane = codes.reshape(shape)
    words = np.zeros((by_plane.shape[0], by_plane.shape[1], by_plane.shape[3]), np.uint32)
    for plane in range(layout.planes):
        for position in range(_WORD_BYTES):
            code = by_plane[:, :, plane, :, position].astype(np.uint32)
            words |= code << np.uint32(_shift(plane, position, layout.bits))
    return words.reshape(len(codes), -1).view(np.uint8)


def _unpack(words: NDArray[np.uint8], layout: DeviceLayout) -> NDArray[np.uint8]:
    """The inverse of `_pack`."""
    packed = words.view(np.uint32).reshape(len(words), -1, layout.tile // _WORD_BYTES)
    shape = (*packed.shape[:2], layout.planes, packed.shape[2], _WORD_BYTES)
    codes = np.zeros(shape, np.uint8)
    mask = np.uint32((1 << layout.bits) - 1)
    for plane in range(layout.planes):
        for position in range(_WORD_BYTES):
            shift = np.uint32(_shift(plane, position, layout.bits))
            codes[:, :, plane, :, position] = packed >> shift & mask
    return codes.reshape(len(words), -1)
