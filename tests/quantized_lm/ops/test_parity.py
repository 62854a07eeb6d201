"""Every backend computes what the formats mean, whatever the format and the shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import Backend, PackedWeight
from quantized_lm.ops.parity import require_parity
from quantized_lm.ops.reference import ReferenceBackend
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor

LEVEL_TABLES = [
    (name, levels) for name, row in FORMATS.items() for levels in row.level_tables.values()
] + [
    ("1bit", (0, 5)),
    ("ternary", (-128, 127)),
    ("2bit", (7,)),
    ("4bit", (-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64)),
    ("8bit", (5, -5, 0)),
]
# M, N, K, group size: one of everything, whole panels, and tails of every kind.
SHAPES = [
    (1, 1, 1, 1),
    (1, 64, 64, 64),
    (2, 65, 33, 33),
    (3, 7, 1, 1),
    (5, 63, 31, 8),
    (6, 130, 65, 64),
    (8, 128, 200, 48),
    (13, 1, 129, 1),
    (17, 200, 257, 100),
    (100, 70, 1400, 1400),  # More rows than one chunk of the native kernels.
]


def random_tensor(
    format_name: str, levels: tuple[int, ...], shape: tuple[int, int], group_size: int
) -> QuantizedTensor:
    rng = np.random.default_rng([*shape, group_size])
    codes = rng.integers(0, len(levels), shape, dtype=np.uint8)
    groups = -(-shape[1] // group_size)
    scale = rng.lognormal(-3, 1, (shape[0], groups)).astype(np.float16)
    return QuantizedTensor.from_codes(
        codes, scale, np.array(levels, np.int8), format=format_name, group_size=group_size
    )


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("format_name", "levels"), LEVEL_TABLES)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_backend_equals_the_formula(
    backend: Backend, format_name: str, levels: tuple[int, ...], sizes: tuple[int, int, int, int]
) -> None:
    num_rows, num_outputs, num_inputs, group_size = sizes
    tensor = random_tensor(format_name, levels, (num_outputs, num_inputs), group_size)
    require_parity(backend, tensor, normal(num_rows, num_inputs))


@pytest.mark.parametrize("format_name", FORMATS)
def test_backend_survives_zero_groups_and_extreme_scales(
    backend: Backend, format_name: str
) -> None:
    tensor = random_tensor(format_name, FORMATS[format_name].levels, (70, 90), 20)
    tensor.scale[3] = 0.0
    tensor.scale[:, 4] = 0.0
    tensor.scale[5, 1] = np.finfo(np.float16).max
    tensor.scale[6, 2] = np.finfo(np.float16).smallest_subnormal
    tensor.scale[7] *= np.float16(-1)
    require_parity(backend, tensor, normal(4, 90))
    require_parity(backend, tensor, 1e4 * normal(4, 90))
    require_parity(backend, tensor, torch.zeros(4, 90))


@dataclass(frozen=True)
class FaultyBackend(ReferenceBackend):
    """The reference with one planted fault."""

    fault: str = ""

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """Leave the last column of the weight out."""
        y = super().linear(x, weight)
        if self.fault == "linear":
            y = y - x[:, -1:] * self.embed(weight, torch.arange(weight.shape[0]))[:, -1]
        return y

    def embed(self, weight: PackedWeight, tokens: Tensor) -> Tensor:
        """Return a NaN."""
        rows = super().embed(weight, tokens)
        if self.fault == "embed":
            rows[0, 0] = torch.nan
        return rows

    def gather_log_prob(
        self, hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor
    ) -> Tensor:
        """Count one padding row of logit 0 in the sum."""
        log_prob = super().gather_log_prob(hidden, weight, rows, tokens)
        if self.fault == "gather_log_prob":
            log_prob = log_prob - log_prob.logsumexp(0).exp().log1p()
        return log_prob


@pytest.mark.parametrize("fault", ["linear", "embed", "gather_log_prob"])
def test_a_planted_fault_is_found(fault: str) -> None:
    tensor = random_tensor("2bit", FORMATS["2bit"].levels, (30, 40), 40)
    require_parity(FaultyBackend(), tensor, normal(3, 40))
    with pytest.raises(BackendError, match=rf"^{fault} of reference"):
        require_parity(FaultyBackend(fault=fault), tensor, normal(3, 40))
