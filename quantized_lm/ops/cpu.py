"""The cpu backend: wraps the native module `_cpu`. The only file that imports it.

Its weight layout, made once by `prepare` (csrc/weight.h reads it):
    words  (P, W, 64) int32   panels of 64 rows; word w of all 64 rows side by side, so that one
                              vector load yields the same code position of many rows
    scale  (P, G, 64) float32
    levels (16,) float32      zero where the format has fewer
A word holds 32 / bits codes, lowest bits first, bits one of 1, 2, 4, 8. Ternary is widened to 2
bits: base-3 digits cost a division each, and memory is not what limits the product. At 8 bits the
words hold levels rather than codes, as int8, which saves a 256-entry look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import PackedWeight
from quantized_lm.ops.checks import require_below, require_finite
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor

try:
    from quantized_lm.ops import _cpu
except ImportError as error:
    _import_error: str | None = str(error)
else:
    _import_error = None

_LEVEL_TABLE_SIZE = 16
_Number = TypeVar("_Number", bound=np.generic)


def why_unavailable() -> str | None:
    """Why the native module cannot be used; None when it can."""
    if _import_error is None:
        return None
    return f"quantized_lm.ops._cpu does not load ({_import_error}); build the package"


def instruction_sets() -> list[str]:
    """What this build contains and this CPU can run, slowest first; empty without the module."""
    return _cpu.instruction_sets() if _import_error is None else []


@torch.library.custom_op("secondpass::linear_cpu", mutates_args=())
def linear_cpu(x: Tensor, parts: Sequence[Tensor], layout: Sequence[int], isa: str) -> Tensor:
    """Multiply: (M, K) float32 to (M, N) float32.

    Args:
        x: (M, K) float32.
        parts: words, scale, levels as in the module docstring.
        layout: N, K, group_size, bits.
        isa: instruction set, one of _cpu.instruction_sets().
    """
    words, scale, levels = parts
    y = x.new_empty((x.shape[0], layout[0]))
    _cpu.linear(x.detach(), words, scale, levels, layout, isa, y)
    return y


@linear_cpu.register_fake
def _linear_fake(x: Tensor, _: Sequence[Tensor], layout: Sequence[int], *_rest: object) -> Tensor:
    return x.new_empty((x.shape[0], layout[0]))


@torch.library.custom_op("secondpass::embed_cpu", mutates_args=())
def embed_cpu(tokens: Tensor, parts: Sequence[Tensor], layout: Sequence[int], isa: str) -> Tensor:
    """Dequantize rows: (T,) int64 to (T, K) float32. Weight arguments as in linear_cpu.

    Raises:
        ShapeError: a token is out of range.
    """
    words, scale, levels = parts
    require_below(tokens, layout[0], "tokens")
    y = tokens.new_empty((tokens.shape[0], layout[1]), dtype=torch.float32)
    _cpu.embed(tokens, words, scale, levels, layout, isa, y)
    return y


@embed_cpu.register_fake
def _embed_fake(
    tokens: Tensor, _: Sequence[Tensor], layout: Sequence[int], *_rest: object
) -> Tensor:
    return tokens.new_empty((tokens.shape[0], layout[1]), dtype=torch.float32)


@torch.library.custom_op("secondpass::gather_log_prob_cpu", mutates_args=())
def gather_log_prob_cpu(
    hidden: Tensor,
    rows: Tensor,
    tokens: Tensor,
    parts: Sequence[Tensor],
    layout: Sequence[int],
    isa: str,
) -> Tensor:
    """Compute log softmax(hidden @ weight.T)[rows, tokens]: (C,) float32.

    Raises:
        ShapeError: a row or token is out of range.
        NonFiniteError: hidden holds NaN or infinity.
    """
    words, scale, levels = parts
    require_finite(hidden, "hidden")
    require_below(rows, len(hidden), "rows")
    require_below(tokens, layout[0], "tokens")
    y = hidden.new_empty((rows.shape[0],))
    _cpu.gather_log_prob(hidden.detach(), rows, tokens, words, scale, levels, layout, isa, y)
    return y


@gather_log_prob_cpu.register_fake
def _gather_log_prob_fake(hidden: Tensor, rows: Tensor, *_: object) -> Tensor:
    return hidden.new_empty((rows.shape[0],))


@dataclass(frozen=True)
class CpuBackend:
    """Native kernels of one instruction set, named by `variant`."""

    variant: str
    name: str = "cpu"

    @classmethod
    def create(cls, isa: str | None = None) -> CpuBackend:
        """Use the given instruction set, or for None the best this CPU has.

        Raises:
            BackendError: the native module is missing, or this CPU lacks the instruction set.
        """
        reason = why_unavailable()
        if reason is not None:
            raise BackendError(reason)
        usable = instruction_sets()
        if isa is not None and isa not in usable:
            raise BackendError(
                f"instruction set {isa!r} was asked for; this CPU and build have {usable}"
            )
        return cls(usable[-1] if isa is None else isa)

    def prepare(self, tensor: QuantizedTensor) -> PackedWeight:
        """Repack for the kernels, as the module docstring describes."""
        bits = _bits_in_memory(tensor.format)
        stored = tensor.codes()
        levels = np.zeros(_LEVEL_TABLE_SIZE, np.float32)
        if bits == 8:
            stored = tensor.levels[stored].view(np.uint8)
        else:
            levels[: len(tensor.levels)] = tensor.levels
        return PackedWeight(
            backend=self,
            format=tensor.format,
            shape=tensor.shape,
            group_size=tensor.group_size,
            words=torch.from_numpy(_by_panel(_shift_into_words(stored, bits), _cpu.PANEL)),
            scale=torch.from_numpy(_by_panel(tensor.scale.astype(np.float32), _cpu.PANEL)),
            levels=torch.from_numpy(levels),
        )

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """(M, K) float32 times weight transposed: (M, N) float32."""
        y: Tensor = linear_cpu(x, weight.parts, _layout(weight), self.variant)
        return y

    def embed(self, weight: PackedWeight, tokens: Tensor) -> Tensor:
        """Dequantize rows: (T,) int64 to (T, K) float32."""
        rows: Tensor = embed_cpu(tokens, weight.parts, _layout(weight), self.variant)
        return rows

    def gather_log_prob(
        self, hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor
    ) -> Tensor:
        """Compute log softmax(hidden @ weight.T)[rows, tokens]: (C,) float32."""
        log_prob: Tensor = gather_log_prob_cpu(
            hidden, rows, tokens, weight.parts, _layout(weight), self.variant
        )
        return log_prob


def _layout(weight: PackedWeight) -> list[int]:
    return [*weight.shape, weight.group_size, _bits_in_memory(weight.format)]


def _bits_in_memory(format_name: str) -> int:
    """Bits of one code in the kernels' layout: the smallest of 1, 2, 4, 8 that holds it."""
    needed = (FORMATS[format_name].num_levels - 1).bit_length()
    return next(bits for bits in (1, 2, 4, 8) if bits >= needed)


def _shift_into_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """(N, K) uint8 to (N, ceil(K * bits / 32)) int32, lowest bits first."""
    num_rows, num_columns = codes.shape
    per_word = 32 // bits
    num_words = -(-num_columns // per_word)
    padded = np.zeros((num_rows, num_words * per_word), np.uint8)
    padded[:, :num_columns] = codes
    words = np.zeros((num_rows, num_words), np.uint32)
    for position in range(per_word):
        words |= padded[:, position::per_word].astype(np.uint32) << np.uint32(position * bits)
    return words.view(np.int32)


def _by_panel(rows: NDArray[_Number], panel: int) -> NDArray[_Number]:
    """(N, W) to (P, W, panel): pad the rows with zeros, then put each panel's rows side by side."""
    num_panels = -(-len(rows) // panel)
    padded = np.zeros((num_panels * panel, rows.shape[1]), rows.dtype)
    padded[: len(rows)] = rows
    return np.ascontiguousarray(padded.reshape(num_panels, panel, -1).transpose(0, 2, 1))
