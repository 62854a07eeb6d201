"""In the environment with Triton: kernels in its interpreter, on a CPU, compared with integers.

Run by tests/gpu with TRITON_INTERPRET=1: `pytest tests/gpu_env/interpreted.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import BackendOptions
from quantized_lm.ops.device_args import Codes, Epilogue, Heads, Nodes, Norm
from quantized_lm.ops.device_layout import DeviceWeight, expand, lay_out
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.ops.parity import require_parity
from quantized_lm.ops.tiles import Tile
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor

TABLES = [(name, table) for name, row in FORMATS.items() for table in row.level_tables]
# (M, N, K): nothing is a multiple of a tile, of a block or of a word, and whole ones.
ODD, WHOLE = [(5, 67, 37), (3, 5, 515)], [(1, 1, 1), (17, 64, 512)]
CASES = [(name, table, shape) for name, table in TABLES for shape in ODD]
CASES += [
    (name, next(iter(FORMATS[name].level_tables)), shape) for name in FORMATS for shape in WHOLE
]
NARROW = Tile(rows=64, nodes=16, warps=4, stages=2)


@pytest.fixture(scope="module")
def backend() -> GpuBackend:
    return GpuBackend.create(BackendOptions(residency="packed"))


def random_weight(
    name: str, table: str, N: int, K: int, group_size: int | None = None
) -> QuantizedTensor:
    rng = np.random.default_rng(N * K)
    levels = np.array(FORMATS[name].level_tables[table], np.int8)
    groups = 1 if group_size is None else -(-K // group_size)
    return QuantizedTensor.from_codes(
        rng.integers(0, len(levels), (N, K), dtype=np.uint8),
        rng.uniform(0.1, 1, (N, groups)).astype(np.float16),
        levels,
        format=name,
        group_size=group_size,
    )


def random_codes(M: int, K: int) -> NDArray[np.int8]:
    return np.random.default_rng(M).integers(-127, 128, (M, K), dtype=np.int8)


def product(
    backend: GpuBackend, weight: DeviceWeight, codes: NDArray[np.int8], tile: Tile = NARROW
) -> NDArray[np.float32]:
    """With every scale and step 1: the integers themselves."""
    ones = DeviceWeight(
        weight.layout, weight.words, torch.ones_like(weight.scale), weight.levels, weight.tables
    )
    y = torch.full((len(codes), weight.layout.num_rows), torch.nan)
    x = Codes(torch.from_numpy(codes), torch.ones(len(codes)))
    backend.kernels.matmul(ones, x, len(codes), y, tile=tile)
    return y.numpy()


@pytest.mark.parametrize(("name", "table", "shape"), CASES)
def test_products_are_the_integers(
    backend: GpuBackend, name: str, table: str, shape: tuple[int, int, int]
) -> None:
    M, N, K = shape
    tensor, codes = random_weight(name, table, N, K), random_codes(M, K)
    expected = codes.astype(np.int64) @ tensor.levels[tensor.codes()].astype(np.int64).T
    weight = lay_out(tensor, expands=False)
    assert np.array_equal(product(backend, weight, codes), expected)
    wide = expand(weight)
    assert np.array_equal(product(backend, wide, codes, Tile(128, 32, 8, 3)), expected)
    direct = lay_out(tensor, expands=True)
    assert torch.equal(direct.words, wide.words)


@pytest.mark.parametrize("bits", ["1bit", "2bit", "4bit"])
def test_a_plane_in_a_wrong_place_is_seen(backend: GpuBackend, bits: str) -> None:
    tensor, codes = (
        random_weight(bits, next(iter(FORMATS[bits].level_tables)), 9, 512),
        random_codes(2, 512),
    )
    expected = codes.astype(np.int64) @ tensor.levels[tensor.codes()].astype(np.int64).T
    good = lay_out(tensor, expands=False)
    swapped = good.words.view(torch.int32).clone()
    swapped = (swapped << 16) | ((swapped >> 16) & 0xFFFF)  # planes change places
    nibbles = ((good.words & 0x0F) << 4) | (good.words >> 4)
    for words in (swapped.view(torch.uint8), nibbles):
        planted = DeviceWeight(good.layout, words, good.scale, good.levels, good.tables)
        assert not np.array_equal(product(backend, planted, codes), expected)
    planted = DeviceWeight(good.layout, good.words, good.scale, -good.levels, good.tables)
    assert not np.array_equal(product(backend, planted, codes), expected)


@pytest.mark.parametrize("group_size", [None, 48])
@pytest.mark.parametrize("name", FORMATS)
def test_operators_equal_their_definition(
    backend: GpuBackend, name: str, group_size: int | None
) -> None:
    table = next(iter(FORMATS[name].level_tables))
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    require_parity(backend, random_weight(name, table, 21, 100, group_size), x)


def test_a_wrong_scale_is_seen(backend: GpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_weight("2bit", "balanced", 21, 100)
    packed = backend.prepare(tensor)
    packed.scale[20] *= 1.001
    monkeypatch.setattr(GpuBackend, "prepare", lambda *_: packed)
    with pytest.raises(BackendError, match="further from its definition"):
        require_parity(backend, tensor, torch.ones(2, 100))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_stays_in_its_row(backend: GpuBackend, bad: float) -> None:
    weight = backend.prepare(random_weight("4bit", "uniform", 5, 40))
    x = torch.ones(3, 40)
    x[1, 7] = bad
    y = backend.linear(x, weight)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind", [None, "rms", "layer"])
def test_norms_are_those_of_torch(backend: GpuBackend, kind: str | None) -> None:
    generator = torch.Generator().manual_seed(1)
    x, gain, bias = (torch.randn(*shape, generator=generator) for shape in ((3, 36), (36,), (36,)))
    out = Codes(torch.zeros((3, 36), dtype=torch.int8), torch.zeros(3))
    norm = Norm(kind, 1e-5, gain, bias)
    backend.kernels.quantize(x, 3, out, is_quads=False, norm=norm)
    normal = {
        None: x,
        "rms": torch.nn.functional.rms_norm(x, (36,), eps=1e-5),
        "layer": torch.nn.functional.layer_norm(x, (36,), eps=1e-5),
    }[kind]
    expected = normal * gain + bias
    rounded = out.codes.float() * out.step[:, None]
    assert torch.allclose(rounded, expected, atol=float(out.step.max()) * 0.51)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("squared_relu", lambda x: x.relu() ** 2),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_epilogues_are_those_of_torch(backend: GpuBackend, activation: str, function) -> None:  # type: ignore[no-untyped-def]
    weight = lay_out(random_weight("8bit", "symmetric", 70, 40), expands=False)
    codes, bias = random_codes(3, 40), torch.linspace(-5, 5, 70)
    x = Codes(torch.from_numpy(codes), torch.tensor([1e-5, 3e-4, 1e-2]))
    plain, y = torch.zeros(3, 70), torch.ones(3, 70)
    backend.kernels.matmul(weight, x, 3, plain, tile=NARROW)
    backend.kernels.matmul(weight, x, 3, y, Epilogue(bias, activation, adds=True), NARROW)
    assert torch.allclose(y, 1 + function(plain + bias), rtol=2e-6, atol=2e-6)


HEADS, HEAD_DIM, PARENT = 2, 18, [-1, 0, 1, 1, 0, 4, 3]


def attended(backend: GpuBackend, order: list[int], seed: int = 3) -> torch.Tensor:
    """Mixed rows of a forest's nodes, whose slots are given out in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    num = len(PARENT)
    qkv = torch.randn(num, 3 * HEADS * HEAD_DIM, generator=generator)
    depth = [0] * num
    for node in range(1, num):
        depth[node] = depth[PARENT[node]] + 1
    slot = torch.tensor(order, dtype=torch.int32) + 2
    above = torch.tensor([1 if up < 0 else int(slot[up]) for up in PARENT], dtype=torch.int32)
    depths = torch.tensor(depth, dtype=torch.int32)
    starts = (torch.cumsum(depths + 1, 0) - depths - 1).to(torch.int32)
    nodes = Nodes(depths, depths, slot, above, starts)
    paths = torch.full((64,), -1, dtype=torch.int32)
    parent_of = torch.zeros(num + 2, dtype=torch.int32)
    store = torch.zeros(num + 2, 2, HEADS * HEAD_DIM)
    query, mixed = torch.zeros(num, HEADS * HEAD_DIM), torch.zeros(num, HEADS * HEAD_DIM)
    heads = Heads(HEADS, HEAD_DIM, None, None, None)
    backend.kernels.trace(nodes, num, parent_of, paths)
    backend.kernels.split(qkv, nodes, num, heads, query, store)
    backend.kernels.attend(query, store, nodes, num, heads, paths, mixed)
    return mixed


def test_attention_sees_ancestors_and_nothing_else(backend: GpuBackend) -> None:
    generator = torch.Generator().manual_seed(3)
    num = len(PARENT)
    q, k, v = (
        torch.randn(num, 3 * HEADS * HEAD_DIM, generator=generator)
        .view(num, 3, HEADS, HEAD_DIM)
        .permute(1, 2, 0, 3)
    )
    sees = torch.zeros(num, num, dtype=torch.bool)
    for node in range(num):
        above = node
        while above >= 0:
            sees[node, above] = True
            above = PARENT[above]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees)
    actual = attended(backend, list(range(num)))
    assert torch.allclose(actual, expected.transpose(0, 1).reshape(num, -1), atol=1e-6)
    assert torch.equal(actual, attended(backend, [6, 2, 0, 5, 1, 4, 3]))


def test_log_sums_are_those_of_float64(backend: GpuBackend) -> None:
    tensor, codes = random_weight("4bit", "uniform", 300, 64), random_codes(3, 64)
    weight, nodes = lay_out(tensor, expands=False), torch.tensor([2, 0, 1], dtype=torch.int32)
    step = torch.tensor([1e-4, 1e-3, 1e-2])
    partial = torch.zeros(2, 3, backend.kernels.num_chunks(weight.layout))
    log_sum = torch.zeros(3)
    x = Codes(torch.from_numpy(codes), step, nodes)
    backend.kernels.log_sum_exp(weight, x, 3, partial, log_sum)
    logits = (codes * step.numpy()[:, None]).astype(np.float64) @ tensor.dequantize().astype(
        np.float64
    ).T
    expected = torch.from_numpy(logits).logsumexp(1)
    assert torch.allclose(log_sum.double(), expected, rtol=2e-6, atol=2e-6)
