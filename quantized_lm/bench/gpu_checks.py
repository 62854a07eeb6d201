"""Whether every kernel computes its definition here, before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantized_lm.errors import BackendError
from quantized_lm.ops.device_args import Codes, Epilogue
from quantized_lm.ops.device_layout import DeviceWeight, expand, lay_out
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.ops.parity import require_parity
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor

Shape = tuple[int, int]  # N, K


@dataclass(frozen=True)
class CheckOptions:
    """What is checked.

    Attributes:
        formats: keys of FORMATS. shapes: (N, K). rows: values of M.
        repeats: of one product, all to be the same bits.
    """

    formats: tuple[str, ...] = tuple(FORMATS)
    shapes: tuple[Shape, ...] = ((1536, 512), (512, 2048), (768, 3072), (16384, 512), (999, 515))
    rows: tuple[int, ...] = (1, 16, 65, 600)
    repeats: int = 100


def check(options: CheckOptions, backend: GpuBackend) -> int:
    """Compare every kernel with its definition; the number of comparisons.

    Raises:
        BackendError: one differs.
    """
    count = 0
    for name in options.formats:
        for N, K in options.shapes:  # noqa: N806
            count += _check_products(random_weight(name, N, K), options, backend)
        for group_size in (None, 48):
            x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
            require_parity(backend, random_weight(name, 24, 100, group_size), x)
            count += 3
    return count


def random_weight(
    name: str, num_rows: int, num_columns: int, group_size: int | None = None
) -> QuantizedTensor:
    """A weight of every code its format has."""
    generator = np.random.default_rng(0)
    row = FORMATS[name]
    groups = 1 if group_size is None else -(-num_columns // group_size)
    return QuantizedTensor.from_codes(
        generator.integers(0, len(row.levels), (num_rows, num_columns), dtype=np.uint8),
        generator.uniform(0.5, 1.0, (num_rows, groups)).astype(np.float16),
        np.array(row.levels, np.int8),
        format=name,
        group_size=group_size,
    )


def random_codes(num: int, num_columns: int, device: torch.device) -> Codes:
    """Rounded rows of which every code may come, with one step each."""
    generator = torch.Generator().manual_seed(num)
    codes = torch.randint(-127, 128, (num, num_columns), generator=generator, dtype=torch.int8)
    return Codes(codes.to(device), torch.rand(num, generator=generator).to(device))


def residencies(
    tensor: QuantizedTensor, device: torch.device
) -> Iterator[tuple[str, DeviceWeight]]:
    """The weight packed, where it is, and expanded."""
    packed = lay_out(tensor, expands=False)
    if packed.layout.bits < 8:
        yield f"packed {packed.layout.bits}", packed.to(device)
    yield "expanded", expand(packed).to(device)


def _check_products(tensor: QuantizedTensor, options: CheckOptions, backend: GpuBackend) -> int:
    device, count = backend.device, 0
    levels = torch.from_numpy(tensor.levels[tensor.codes()]).to(device).double()
    scale = torch.from_numpy(tensor.scale.astype(np.float32)).to(device)[:, 0]
    num_columns = tensor.shape[1]
    for num in options.rows:
        codes = random_codes(num, num_columns, device)
        sums = (codes.codes.double() @ levels.T).float()  # exact
        expected = sums * scale * codes.step[:, None]
        for residency, weight in residencies(tensor, device):
            what = f"{tensor.format} {tensor.shape}, M {num}, {residency}"
            y = _product(backend, weight, codes, num)
            _require_same(y, expected, what)
            for _ in range(options.repeats):
                _require_same(_product(backend, weight, codes, num), y, f"{what}, repeated")
            alone = Codes(codes.codes[:1].contiguous(), codes.step[:1])
            _require_same(_product(backend, weight, alone, 1), y[:1], f"{what}, alone")
            count += options.repeats + 2
    return count


def _product(backend: GpuBackend, weight: DeviceWeight, codes: Codes, num: int) -> Tensor:
    y = torch.full((num, weight.layout.num_rows), torch.nan, device=backend.device)
    backend.kernels.matmul(weight, codes, num, y, Epilogue())
    return y


def _require_same(actual: Tensor, expected: Tensor, what: str) -> None:
    if not torch.equal(actual, expected):
        wrong = int((actual != expected).sum())
        raise BackendError(f"{what}: {wrong} of {actual.numel()} numbers differ; nothing was timed")
