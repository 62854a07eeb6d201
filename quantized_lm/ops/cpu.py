"""The cpu backend: packs weights for the native module `_cpu` and calls it.

csrc/kernels.h describes the layout that `prepare` makes once:
    words  (P, W, 64) int32   panels of 64 rows; word w of all 64 rows side by side, so that one
                              vector load yields the same code positions of many rows. Every group
                              of columns starts on a word of its own. For look-up with AVX2 the
                              bytes of those 64 words are sorted by their place in a word.
    scale  (P, G, 64) float32
    levels (16,) int8         those that follow a format's last one are never seen; see _fill_levels
A word holds 32 / bits codes, bits one of 1, 2, 4, 8. Ternary is widened to 2 bits: base-3 digits
cost a division each, and memory is not what limits the product. At 8 bits the words hold levels
rather than codes, which saves a 256-entry look-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import Activations, BackendOptions, PackedWeight
from quantized_lm.quant.formats import FORMATS, QUAD
from quantized_lm.quant.tensor import QuantizedTensor

if TYPE_CHECKING:  # a model is served without it
    from torch import Tensor

try:
    from quantized_lm.ops import _cpu
except ImportError as error:
    _import_error: str | None = str(error)
else:
    _import_error = None

_LEVEL_TABLE_SIZE = 16
_EVEN_BITS = 4  # of codes that kernels may multiply by, where levels are evenly spaced
_INT8 = np.iinfo(np.int8)
_BITS_PER_WORD = 32
_CACHE_LINE = 64
# What look-up kernels may multiply the sum of a subset by: it has to stay an int8.
_LARGEST_FACTOR = 127
_ACTIVATION_RULES = ("absmax", "quads")  # in the order of kernels.h
_Number = TypeVar("_Number", bound=np.generic)


class Layout(IntEnum):
    """Where the codes of a word lie in it; the numbers are those of kernels.h."""

    DOT = 0
    LOOKUP = 1
    LOOKUP_BYTES = 2


def why_unavailable() -> str | None:
    """Why the native module cannot be used; None when it can."""
    if _import_error is None:
        return None
    return f"quantized_lm.ops._cpu does not load ({_import_error}); build the package"


def instruction_sets() -> list[str]:
    """What this build contains and this CPU can run, slowest first; empty without the module."""
    return _cpu.instruction_sets() if _import_error is None else []


def measure_peaks(threads: int, bursts: int, only: str = "") -> list[tuple[str, str, float]]:
    """Meter the machine's limits (csrc/peaks.h); empty without the module.

    Args:
        only: name of the one that is wanted; empty for all.

    Returns:
        (name, unit, units per second of all threads together) of each.
    """
    return _cpu.measure_peaks(threads, bursts, only) if _import_error is None else []


@dataclass(frozen=True)
class CpuBackend:
    """Native kernels of one instruction set.

    Attributes:
        variant: the instruction set.
        threads: that share the work.
        pins: whether each of them stays on one core.
        pool: those threads.
        pool_handle: what operators know them by.
    """

    variant: str
    threads: int
    pins: bool
    pool: _cpu.Pool = field(compare=False, repr=False)
    pool_handle: int = field(compare=False, repr=False)
    name: str = "cpu"

    @classmethod
    def create(cls, options: BackendOptions) -> CpuBackend:
        """Use the instruction set asked for, or the best this CPU has, and start the threads.

        Raises:
            BackendError: the native module is missing, this CPU lacks the instruction set, or the
                system has no such number of threads.
        """
        reason = why_unavailable()
        if reason is not None:
            raise BackendError(reason)
        usable = instruction_sets()
        if options.isa is not None and options.isa not in usable:
            raise BackendError(
                f"instruction set {options.isa!r} was asked for; this CPU and build have "
                f"{', '.join(usable)}"
            )
        try:
            pool = _cpu.Pool(options.threads, options.pins)
        except RuntimeError as error:
            raise BackendError(
                f"{options.threads} threads cannot be started: {error}; need fewer"
            ) from None
        return cls(options.isa or usable[-1], options.threads, options.pins, pool, pool.handle)

    @property
    def activations(self) -> Activations:
        """What products are computed from."""
        return "int8"

    def prepare(self, tensor: QuantizedTensor) -> PackedWeight:
        """Repack for the kernels, as the module docstring describes.

        Raises:
            BackendError: the weight is too wide for exact sums.
        """
        num_columns = tensor.shape[1]
        if num_columns > _cpu.MAX_COLUMNS:
            raise BackendError(
                f"a weight has {num_columns} columns; the cpu backend takes at most "
                f"{_cpu.MAX_COLUMNS}"
            )
        bits = _bits_in_memory(tensor.format)
        stored = tensor.codes()
        if bits == 8:
            stored = tensor.levels[stored].view(np.uint8)
            levels = np.zeros(_LEVEL_TABLE_SIZE, np.int8)
        else:
            levels = _fill_levels(tensor.levels, bits)
        looks_up = bits <= 2 and _keeps_fours(tensor) and _is_additive(levels, len(tensor.levels))
        layout = Layout(_cpu.lookup_layout(self.variant)) if looks_up else Layout.DOT
        words = _into_words(_pad_groups(stored, tensor.group_size, bits), bits, layout)
        panels = _by_panel(words, _cpu.PANEL)
        if layout is Layout.LOOKUP_BYTES:
            panels = _byte_by_byte(panels)
        rule = _ACTIVATION_RULES.index(tensor.packed_format.activation_rule)
        return PackedWeight(
            backend=self,
            format=tensor.format,
            shape=tensor.shape,
            group_size=tensor.group_size,
            words=_aligned(panels),
            scale=_aligned(_by_panel(tensor.scale.astype(np.float32), _cpu.PANEL)),
            levels=_aligned(levels),
            layout=(*tensor.shape, tensor.group_size, bits, int(layout), rule),
        )

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """(M, K) float32 times weight transposed: (M, N) float32."""
        from quantized_lm.ops import cpu_operators  # noqa: PLC0415 - torch's, for torch's callers

        y: Tensor = cpu_operators.linear_cpu(x, *self._arguments(weight))
        return y

    def embed(self, weight: PackedWeight, tokens: Tensor) -> Tensor:
        """Dequantize rows: (T,) int64 to (T, K) float32."""
        from quantized_lm.ops import cpu_operators  # noqa: PLC0415

        rows: Tensor = cpu_operators.embed_cpu(tokens, *self._arguments(weight))
        return rows

    def gather_log_prob(
        self, hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor
    ) -> Tensor:
        """Compute log softmax(hidden @ weight.T)[rows, tokens]: (C,) float32."""
        from quantized_lm.ops import cpu_operators  # noqa: PLC0415

        log_prob: Tensor = cpu_operators.gather_log_prob_cpu(
            hidden, rows, tokens, *self._arguments(weight)
        )
        return log_prob

    def time_linear(self, x: Tensor, weight: PackedWeight, repeats: int) -> float:
        """Seconds that `repeats` products take on one thread, the rounding of x included.

        Args:
            x: (M, K) float32.
            weight: (N, K), prepared by this backend.
        """
        return _cpu.time_linear(
            x,
            _cpu.Weight(weight.words, weight.scale, weight.levels, weight.layout),
            self.variant,
            repeats,
        )

    def _arguments(self, weight: PackedWeight) -> tuple[list[Tensor], list[int], str, int]:
        import torch  # noqa: PLC0415

        parts = [torch.from_numpy(part) for part in weight.parts]
        return parts, list(weight.layout), self.variant, self.pool_handle


def _bits_in_memory(format_name: str) -> int:
    """Bits of one code in the kernels' layout: the smallest of 1, 2, 4, 8 that holds it."""
    needed = (FORMATS[format_name].num_levels - 1).bit_length()
    return next(bits for bits in (1, 2, 4, 8) if bits >= needed)


def _fill_levels(levels: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Add what no code stands for: 16 evenly spaced levels go on as they began, others with zeros.

    Kernels for evenly spaced levels multiply by codes instead.
    """
    filled = np.zeros(_LEVEL_TABLE_SIZE, np.int8)
    filled[: len(levels)] = levels
    if bits == _EVEN_BITS and len(levels) > 1:
        first, second = levels[:2].astype(np.int64)
        even = first + np.arange(_LEVEL_TABLE_SIZE) * (second - first)
        if np.array_equal(even[: len(levels)], levels) and _INT8.min <= even[-1] <= _INT8.max:
            filled[:] = even
    return filled


def _keeps_fours(tensor: QuantizedTensor) -> bool:
    """Whether what is looked up together is four columns of one group, as rule "quads" has them."""
    return tensor.group_size % QUAD == 0 or tensor.num_groups == 1


def _is_additive(levels: NDArray[np.int8], num_levels: int) -> bool:
    """Whether level[code] = level[0] + sum over bits b of the code of factor[b], each an int8.

    Args:
        levels: (16,), as the kernels see them: zero from num_levels on.
        num_levels: at most 4.
    """
    table = levels.astype(np.int64)
    factors = table[1:3] - table[0]
    is_sum = num_levels < 4 or table[3] == table[0] + factors.sum()
    return bool(is_sum) and bool((abs(factors) <= _LARGEST_FACTOR).all())


def _pad_groups(codes: NDArray[np.uint8], group_size: int, bits: int) -> NDArray[np.uint8]:
    """Make every group fill whole words: (N, K) to (N, G * padded group)."""
    num_rows, num_columns = codes.shape
    num_groups = -(-num_columns // group_size)
    per_word = _BITS_PER_WORD // bits
    padded_size = -(-group_size // per_word) * per_word
    whole = np.zeros((num_rows, num_groups * group_size), np.uint8)
    whole[:, :num_columns] = codes
    padded = np.zeros((num_rows, num_groups, padded_size), np.uint8)
    padded[:, :, :group_size] = whole.reshape(num_rows, num_groups, group_size)
    return padded.reshape(num_rows, num_groups * padded_size)


def _piece_shifts(bits: int, layout: Layout) -> NDArray[np.int64]:
    """Where in a word each code's pieces begin: (codes in a word, pieces), lowest bits first."""
    position = np.arange(_BITS_PER_WORD // bits)[:, None]
    if layout is Layout.DOT:
        return 8 * (position % 4) + bits * (position // 4)
    plane = np.arange(2) if bits == 2 else position // 16
    return 8 * (position // 4 % 4) + 4 * plane + position % 4


def _into_words(codes: NDArray[np.uint8], bits: int, layout: Layout) -> NDArray[np.int32]:
    """(N, W * codes in a word) uint8 to (N, W) int32."""
    shifts = _piece_shifts(bits, layout)
    per_word, num_pieces = shifts.shape
    piece_bits = bits // num_pieces
    words = np.zeros((len(codes), codes.shape[1] // per_word), np.uint32)
    for position in range(per_word):
        code = codes[:, position::per_word].astype(np.uint32)
        for piece in range(num_pieces):
            value = code >> np.uint32(piece * piece_bits) & np.uint32((1 << piece_bits) - 1)
            words |= value << np.uint32(shifts[position, piece])
    return words.view(np.int32)


def _by_panel(rows: NDArray[_Number], panel: int) -> NDArray[_Number]:
    """(N, W) to (P, W, panel): pad the rows with zeros, then put each panel's rows side by side."""
    num_panels = -(-len(rows) // panel)
    padded = np.zeros((num_panels * panel, rows.shape[1]), rows.dtype)
    padded[: len(rows)] = rows
    return np.ascontiguousarray(padded.reshape(num_panels, panel, -1).transpose(0, 2, 1))


def _byte_by_byte(panels: NDArray[np.int32]) -> NDArray[np.int32]:
    """The words of a panel at each place, as all their first bytes, then all the second ones."""
    bytes_of_word = panels.astype("<i4", copy=False)[..., None].view(np.uint8)
    return np.ascontiguousarray(bytes_of_word.swapaxes(2, 3)).view(np.int32).reshape(panels.shape)


def _aligned(array: NDArray[_Number]) -> NDArray[_Number]:
    """Copy to memory on a cache line: no vector that is loaded straddles two."""
    room = np.empty(array.nbytes + _CACHE_LINE, np.uint8)
    start = -room.ctypes.data % _CACHE_LINE
    copied = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copied[...] = array
    return copied
