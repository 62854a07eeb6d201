"""How many bytes of weights.safetensors each choice of formats comes to, before any is made.

Everything is counted: words, scales and level tables of packed matrices, plain float32 tensors,
and the file's own header.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from quantized_lm.errors import RecipeError
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline.rounding import grid_of, quantized_as, rate_of
from quantized_lm.quant.formats import Grid, get_format
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.storage import float_bytes, tensor_bytes, weights_bytes


@dataclass(frozen=True)
class SizeTable:
    """Bytes by matrix and choice of format.

    Attributes:
        float_bytes: the same architecture's float32 file: what compression is measured against.
        fixed_bytes: what no choice changes: plain float32 tensors and the header of the file.
        packed: bytes of each matrix by its name and by choice, smallest first.
    """

    float_bytes: int
    fixed_bytes: int
    packed: dict[str, dict[str, int]]

    def total(self, formats: Mapping[str, str]) -> int:
        """Bytes on disk with one choice for each matrix."""
        return self.fixed_bytes + sum(self.packed[name][formats[name]] for name in self.packed)

    def only(self, choices: Collection[str]) -> SizeTable:
        """The table of some of its choices."""
        packed = {
            name: {choice: size for choice, size in row.items() if choice in choices}
            for name, row in self.packed.items()
        }
        return replace(self, packed=packed)


def size_table(model: nn.Module, choices: Sequence[str]) -> SizeTable:
    """Sizes of a float model's matrices in each of the formats, stored plain.

    The header is that of the file with the largest choices: it holds sizes as decimal numbers, so
    smaller choices may need a few bytes less. What is stored at its entropy needs less too.

    Args:
        choices: as in `rounding`, such as "2bit"; codes at a rate take as many bits as it says.

    Raises:
        RecipeError: no choices.
        FormatError: there is no such format, level table or rate.
    """
    if not choices:
        raise RecipeError("there are no formats to choose from; need at least one, such as '2bit'")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    packed, largest = {}, {}
    for name in matrix_names(model):
        num_rows, num_columns = shapes[name]
        shape = (num_rows, num_columns)
        sizes = {choice: _choice_bytes(shape, choice) for choice in choices}
        packed[name] = _ascending(sizes)
        largest[name] = _blank(shape, grid_of(max(sizes, key=sizes.__getitem__)))
    plain = {n: np.zeros(shape, np.float32) for n, shape in shapes.items() if n not in packed}
    file_bytes = weights_bytes(largest, plain, coding="")
    return SizeTable(
        float_bytes=float_bytes(shapes),
        fixed_bytes=file_bytes - sum(tensor.size_bytes for tensor in largest.values()),
        packed=packed,
    )


def coded_size_table(model: nn.Module, choices: Sequence[str]) -> SizeTable:
    """As `size_table`, each matrix in its smallest coding once it is quantized.

    Only a guess of what a trained matrix will take: training moves weights between levels.
    """
    sizes = size_table(model, choices)
    parameters = dict(model.named_parameters())
    packed = {}
    for name, row in sizes.packed.items():
        weight = parameters[name].detach().numpy()
        packed[name] = _ascending(
            {choice: tensor_bytes(quantized_as(choice, weight)) for choice in row}
        )
    return replace(sizes, packed=packed)


def packed_size_bytes(shape: tuple[int, int], grid: Grid) -> int:
    """`QuantizedTensor.size_bytes` of a matrix (N, K) on a grid."""
    group_size = grid.group_size or shape[1]
    return get_format(grid.format).matrix_bytes(shape, group_size, len(grid.levels))


def _choice_bytes(shape: tuple[int, int], choice: str) -> int:
    bits = rate_of(choice)
    if bits is None:
        return packed_size_bytes(shape, grid_of(choice))
    return math.ceil(bits * shape[0] * shape[1] / 8)


def _ascending(sizes: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(sizes.items(), key=lambda item: item[1]))


def _blank(shape: tuple[int, int], grid: Grid) -> QuantizedTensor:
    """A tensor of that size."""
    return QuantizedTensor.from_codes(
        np.zeros(shape, np.uint8),
        np.ones((shape[0], 1), np.float16),
        np.array(grid.levels, np.int8),
        format=grid.format,
    )
