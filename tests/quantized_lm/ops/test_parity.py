"""Every backend computes what the formats mean, whatever the format and the shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import Activations, Backend, PackedWeight
from quantized_lm.ops.parity import require_parity
from quantized_lm.ops.reference import ReferenceBackend, multiply_codes
from quantized_lm.quant.activations import QuantizedActivations, quantize_activations
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor

LEVEL_TABLES = [
    (name, levels) for name, row in FORMATS.items() for levels in row.level_tables.values()
] + [
    ("1bit", (0, 5)),
    ("ternary", (-128, 127)),
    ("2bit", (7,)),
    ("4bit", (-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64)),
    ("4bit", tuple(range(127, -129, -17))),
    ("4bit", (-100, 0, 100)),
    ("4bit", (9,)),
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


@pytest.mark.parametrize("group_size", [10, 12])
@pytest.mark.parametrize("format_name", ["1bit", "ternary", "2bit"])
def test_groups_that_cut_a_four_of_columns_do_not_overflow_look_up(
    backend: Backend, format_name: str, group_size: int
) -> None:
    # Each aligned four of columns holds two large numbers, one that begins at column 10 holds four.
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0] * 5])
    tensor = random_tensor(format_name, FORMATS[format_name].levels, (70, 40), group_size)
    require_parity(backend, tensor, x)


@pytest.mark.parametrize("format_name", ["1bit", "ternary", "2bit"])
@pytest.mark.parametrize("num_inputs", [1024, 1040, 4144])
def test_the_largest_sums_of_fours_of_a_long_row_do_not_overflow(
    backend: Backend, format_name: str, num_inputs: int
) -> None:
    # Codes 64, 64, 64, 62: the most that a four comes to. All the 16-bit sums of bytes are largest.
    fours = torch.tensor([63.5, 63.5, 63.5, 62.5]).repeat(num_inputs // 4)
    x = torch.stack([fours, -fours, torch.zeros(num_inputs)])
    levels = FORMATS[format_name].levels
    for code in range(len(levels)):
        tensor = QuantizedTensor.from_codes(
            np.full((33, num_inputs), code, np.uint8),
            np.ones((33, 1), np.float16),
            np.array(levels, np.int8),
            format=format_name,
        )
        require_parity(backend, tensor, x)


@pytest.mark.parametrize("levels", [tuple(range(-15, 16, 2)), tuple(range(127, -129, -17))])
@pytest.mark.parametrize("num_inputs", [32, 40, 1024, 4136])
def test_the_largest_products_of_evenly_spaced_levels_do_not_overflow(
    backend: Backend, levels: tuple[int, ...], num_inputs: int
) -> None:
    ones = torch.ones(num_inputs)
    x = torch.stack([ones, -ones, ones * torch.tensor([1.0, 0.0]).repeat(num_inputs // 2)])
    for code in (0, len(levels) - 1):
        codes = np.full((33, num_inputs), code, np.uint8)
        tensor = QuantizedTensor.from_codes(
            codes, np.ones((33, 1), np.float16), np.array(levels, np.int8), format="4bit"
        )
        require_parity(backend, tensor, x)


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


def one_level_off(weight: PackedWeight) -> PackedWeight:
    levels = weight.levels.clone()
    levels[-1] -= 1
    return replace(weight, levels=levels)


def one_scale_off(weight: PackedWeight) -> PackedWeight:
    scale = weight.scale.clone()
    scale[-1, -1] *= 1.001
    return replace(weight, scale=scale)


def no_tail_column(weight: PackedWeight) -> PackedWeight:
    """The 41st ternary code, the only one of the third word, becomes the middle level: zero."""
    words = weight.words.clone()
    words[:, -1] = 1
    return replace(weight, words=words)


FAULTS: dict[str, Callable[[PackedWeight], PackedWeight]] = {
    "level": one_level_off,
    "scale": one_scale_off,
    "tail": no_tail_column,
}


@dataclass(frozen=True)
class FaultyBackend(ReferenceBackend):
    """The reference, one of whose operations reads a spoiled weight."""

    operation: str = ""
    fault: str = ""

    def _seen_by(self, operation: str, weight: PackedWeight) -> PackedWeight:
        return FAULTS[self.fault](weight) if operation == self.operation else weight

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """Multiply by what this operation sees."""
        return super().linear(x, self._seen_by("linear", weight))

    def embed(self, weight: PackedWeight, tokens: Tensor) -> Tensor:
        """Look up in what this operation sees."""
        return super().embed(self._seen_by("embed", weight), tokens)

    def gather_log_prob(
        self, hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor
    ) -> Tensor:
        """Multiply by what this operation sees."""
        seen = self._seen_by("gather_log_prob", weight)
        return super().gather_log_prob(hidden, seen, rows, tokens)


@pytest.mark.parametrize("activations", ["float32", "int8"])
@pytest.mark.parametrize("operation", ["linear", "embed", "gather_log_prob"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_weight_is_found(activations: Activations, operation: str, fault: str) -> None:
    tensor = random_tensor("ternary", (-1, 0, 1), (30, 41), 20)
    tensor.words[-1, -1] = 2  # so that every fault meets a level that is not zero
    require_parity(FaultyBackend(activations=activations), tensor, normal(3, 41))
    faulty = FaultyBackend(activations=activations, operation=operation, fault=fault)
    with pytest.raises(BackendError, match=rf"^{operation} of reference .*{activations}"):
        require_parity(faulty, tensor, normal(3, 41))


@dataclass(frozen=True)
class InexactBackend(ReferenceBackend):
    """int8 activations with one planted fault in the arithmetic."""

    fault: str = ""

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """Multiply, nearly right."""
        activations = quantize_activations(x, FORMATS[weight.format].activation_rule)
        codes, step = activations.codes.clone(), activations.step.clone()
        if self.fault == "code":
            codes[-1, -1] += 1
        if self.fault == "step":
            step[-1] = torch.nextafter(step[-1], torch.tensor(torch.inf))
        spoiled = QuantizedActivations(codes, step)
        y = multiply_codes(spoiled, weight.parts, weight.format, weight.group_size)
        if self.fault == "order":
            one = torch.ones_like(step)
            unscaled = QuantizedActivations(codes, one)
            scaled = weight.scale.float() * step[-1]
            y[-1] = multiply_codes(
                unscaled, [weight.words, scaled, weight.levels], weight.format, weight.group_size
            )[-1]
        return y


@pytest.mark.parametrize("fault", ["code", "step", "order"])
@pytest.mark.parametrize("format_name", ["1bit", "8bit"])
def test_int8_products_are_held_to_the_last_bit(format_name: str, fault: str) -> None:
    tensor = random_tensor(format_name, FORMATS[format_name].levels, (30, 40), 20)
    require_parity(InexactBackend(activations="int8"), tensor, normal(3, 40))
    with pytest.raises(BackendError, match=r"^linear of reference"):
        require_parity(InexactBackend(activations="int8", fault=fault), tensor, normal(3, 40))


@dataclass(frozen=True)
class NanBackend(ReferenceBackend):
    """Embeds a NaN."""

    def embed(self, weight: PackedWeight, tokens: Tensor) -> Tensor:
        """Return a NaN."""
        rows = super().embed(weight, tokens)
        rows[0, 0] = torch.nan
        return rows


def test_nan_is_no_answer() -> None:
    tensor = random_tensor("2bit", FORMATS["2bit"].levels, (30, 40), 40)
    with pytest.raises(BackendError, match=r"^embed of reference"):
        require_parity(NanBackend(), tensor, normal(3, 40))


@dataclass(frozen=True)
class PaddedBackend(ReferenceBackend):
    """Counts one padding row of logit 0 in the log-sum-exp."""

    def gather_log_prob(
        self, hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor
    ) -> Tensor:
        """Normalize by one too many."""
        log_prob = super().gather_log_prob(hidden, weight, rows, tokens)
        return log_prob - log_prob.logsumexp(0).exp().log1p()


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_a_row_too_many_in_the_softmax_is_found(activations: Activations) -> None:
    tensor = random_tensor("2bit", FORMATS["2bit"].levels, (30, 40), 40)
    with pytest.raises(BackendError, match=r"^gather_log_prob of reference"):
        require_parity(PaddedBackend(activations=activations), tensor, normal(3, 40))
