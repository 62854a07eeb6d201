"""Peaks of a GPU, and matrix products on it: ours beside torch's, on one model's shapes each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from quantized_lm.bench.gpu_checks import random_codes, random_weight, residencies
from quantized_lm.bench.gpu_clock import Call, Clock
from quantized_lm.bench.rounds import Track
from quantized_lm.ops.device_args import Codes, Epilogue, Heads, Nodes
from quantized_lm.ops.device_layout import DeviceWeight
from quantized_lm.ops.gpu import GpuBackend, kernel_errors
from quantized_lm.ops.tiles import Tile, TileKey

CUBLAS, INT4 = "cuBLAS bf16", "torch _weight_int4pack_mm"
PLAIN_OUTPUT = "torch bf16, log_softmax, gather"
_PACKED_FORMATS = ("1bit", "2bit", "4bit")
_INT4_GROUP = 128
_DEPTH = 25  # of the tree whose attention is timed
_MOST_INT4_ROWS = 1024
_FEWEST_INT_MM_ROWS = 17


@dataclass(frozen=True)
class ProductOptions:
    """What is timed.

    Attributes:
        shapes: (N, K) of weights. outputs: (N, K) of output layers. rows: values of M.
        nodes: of trees whose attention is timed. heads: (count, width).
        square: side of the products and (squared, times 16) bytes of the copy of the peaks.
        tiles: tried for each product where tiles are looked for; none for the table's.
    """

    shapes: tuple[tuple[int, int], ...] = (
        (1536, 512), (512, 512), (2048, 512), (512, 2048), (2304, 768), (768, 768), (3072, 768),
        (768, 3072), (8192, 2048), (4096, 4096),
    )  # fmt: skip
    outputs: tuple[tuple[int, int], ...] = ((16384, 512), (50000, 768))
    rows: tuple[int, ...] = (1, 16, 64, 128, 256, 600, 1024, 4000)
    nodes: tuple[int, ...] = (600, 4000)
    heads: tuple[int, int] = (8, 64)
    square: int = 8192
    tiles: tuple[Tile, ...] = ()


TRIED_TILES = tuple(
    Tile(rows, nodes, warps, stages)
    for (rows, warps), nodes, stages in itertools.product(
        ((64, 4), (128, 4), (128, 8)), (16, 32, 64, 128), (2, 3)
    )
)


@dataclass(frozen=True)
class GpuTime:
    """One thing on one size.

    Attributes:
        what: "product", "output", "attention" or "peak". system: who computed it.
        size: M, N, K; nodes for attention. warm_us, cold_us: medians.
        rate: TFLOP/s, or GB/s of a copy.
        failure: why there is no time; None where there is.
    """

    what: str
    system: str
    size: tuple[int, ...]
    warm_us: float
    cold_us: float
    rate: float
    failure: str | None = None


def time_peaks(options: ProductOptions, backend: GpuBackend, clock: Clock) -> list[GpuTime]:
    """A copy, bf16 and int8 products, and the cost of 1, 10 and 100 empty kernels in a graph."""
    side, device = options.square, backend.device
    a = torch.randn(side, side, device=device).bfloat16()
    b = torch.randn(side, side, device=device).bfloat16()
    c = torch.empty_like(a)
    codes = torch.randint(-127, 128, (side, side), device=device).to(torch.int8)
    flop = 2.0 * side**3
    source = torch.zeros(side * side * 16, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    one = torch.zeros(1, device=device)
    calls: list[tuple[str, Call, float]] = [
        ("copy", lambda: _drop(target.copy_(source)), 2e-9 * source.nbytes),
        (CUBLAS, lambda: _drop(torch.mm(a, b, out=c)), 1e-12 * flop),
        ("torch _int_mm", lambda: _drop(torch._int_mm(codes, codes.T)), 1e-12 * flop),  # noqa: SLF001
    ]
    calls += [
        (f"{count} small kernels", _repeat(lambda: _drop(one.add_(1)), count), 0.0)
        for count in (1, 10, 100)
    ]
    return [
        _timed("peak", name, (side, side, side), call, work, clock) for name, call, work in calls
    ]


def time_products(
    options: ProductOptions, backend: GpuBackend, clock: Clock, track: Track
) -> tuple[list[GpuTime], dict[TileKey, Tile]]:
    """Every shape, M and system; and the best tiles, where tiles are tried."""
    times: list[GpuTime] = []
    best: dict[TileKey, Tile] = {}
    for N, K in track((*options.shapes, *options.outputs), "products"):  # noqa: N806
        for M in options.rows:  # noqa: N806
            x = torch.randn(M, K, device=backend.device)
            times += [
                _timed("product", name, (M, N, K), call, 2e-12 * M * N * K, clock)
                for name, call in _torch_products(x, N, K)
            ]
        for name, weight in _our_weights(N, K, backend):
            for M in options.rows:  # noqa: N806
                key = TileKey("matmul", weight.layout.bits, M, N, K)
                call = partial(_multiply, backend, weight, *_rows(M, N, K, backend.device))
                tile = _best_tile(call, _fitting(options.tiles, M), clock)
                if tile is not None:
                    best[key] = tile
                chosen = partial(call, tile or backend.kernels.tiles.choose(key))
                flop = 2e-12 * M * N * K
                times.append(_timed("product", f"ours {name}", (M, N, K), chosen, flop, clock))
    return times, best


def time_outputs(
    options: ProductOptions, backend: GpuBackend, clock: Clock, track: Track
) -> list[GpuTime]:
    """The whole output layer, against a product, its log-softmax and a gather."""
    times: list[GpuTime] = []
    for N, K in track(options.outputs, "output layers"):  # noqa: N806
        weights = list(_our_weights(N, K, backend))
        matrix = torch.randn(N, K, device=backend.device).bfloat16()
        for M in options.rows:  # noqa: N806
            size, flop = (M, N, K), 2e-12 * M * N * K
            x = torch.randn(M, K, device=backend.device).bfloat16()
            plain = partial(_plain_output, x, matrix)
            times.append(_timed("output", PLAIN_OUTPUT, size, plain, flop, clock))
            for name, weight in weights:
                call = _our_output(backend, weight, M)
                times.append(_timed("output", f"ours {name}", size, call, flop, clock))
    return times


def time_attention(options: ProductOptions, backend: GpuBackend, clock: Clock) -> list[GpuTime]:
    """Attention over the paths of a tree 25 deep, against a dense mask of who sees whom."""
    times = []
    for num in options.nodes:
        calls = _attention_calls(num, options.heads, backend)
        times += [_timed("attention", name, (num,), call, 0.0, clock) for name, call in calls]
    return times


def _rows(M: int, N: int, K: int, device: torch.device) -> tuple[Codes, Tensor]:  # noqa: N803
    return random_codes(M, K, device), torch.empty(M, N, device=device)


def _fitting(tiles: tuple[Tile, ...], num_nodes: int) -> tuple[Tile, ...]:
    """Without those far wider or narrower than there are nodes: each takes a second to compile."""
    widest = max(2 * num_nodes, 16)
    return tuple(one for one in tiles if min(num_nodes, 256) // 8 <= one.nodes <= widest)


def _multiply(
    backend: GpuBackend, weight: DeviceWeight, codes: Codes, y: Tensor, tile: Tile
) -> None:
    backend.kernels.matmul(weight, codes, len(y), y, Epilogue(), tile)


def _plain_output(x: Tensor, matrix: Tensor) -> None:
    target = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    logits = functional.linear(x, matrix).float()
    _drop(logits.log_softmax(1).gather(1, target[:, None]))


def _our_output(backend: GpuBackend, weight: DeviceWeight, num: int) -> Call:
    """Log-sums of all nodes, and the logit of one token of each."""
    device, kernels = backend.device, backend.kernels
    codes = random_codes(num, weight.layout.num_columns, device)
    nodes = torch.arange(num, dtype=torch.int32, device=device)
    hidden = Codes(codes.codes, codes.step, nodes)
    tokens = nodes % weight.layout.num_rows
    sums = torch.empty((2, num, kernels.num_chunks(weight.layout)), device=device)
    log_sum, log_prob = torch.empty(num, device=device), torch.empty(num, device=device)

    def call() -> None:
        kernels.log_sum_exp(weight, hidden, num, sums, log_sum)
        kernels.answer(weight, hidden, log_sum, nodes, tokens, log_prob)

    return call


def _attention_calls(
    num: int, shape: tuple[int, int], backend: GpuBackend
) -> list[tuple[str, Call]]:
    count, width = shape
    device, kernels, dim = backend.device, backend.kernels, count * width
    order = torch.arange(num, dtype=torch.int32)
    depth = order % _DEPTH
    parent = torch.where(depth > 0, order - 1, -1) + 2
    start = torch.cumsum(depth + 1, 0) - depth - 1
    parts = (depth, depth, order + 2, parent, start)
    nodes = Nodes(*(part.to(device, torch.int32) for part in parts))
    paths = torch.zeros(int((depth + 1).sum()), dtype=torch.int32, device=device)
    kernels.trace(nodes, num, torch.zeros(num + 2, dtype=torch.int32, device=device), paths)
    query, mixed = torch.randn(num, dim, device=device), torch.empty(num, dim, device=device)
    store = torch.randn(num + 2, 2, dim, device=device)
    heads = Heads(count, width, None, None, None)
    q = query.view(num, count, width).transpose(0, 1).bfloat16()[None]
    steps = order[:, None] - order
    sees = ((steps >= 0) & (steps <= depth[:, None])).to(device)

    def dense() -> None:
        _drop(functional.scaled_dot_product_attention(q, q, q, attn_mask=sees))

    ours = partial(kernels.attend, query, store, nodes, num, heads, paths, mixed)
    return [("ours", ours), ("torch SDPA bf16, dense mask", dense)]


def _our_weights(N: int, K: int, backend: GpuBackend) -> Iterator[tuple[str, DeviceWeight]]:  # noqa: N803
    for name in _PACKED_FORMATS:
        for residency, weight in residencies(random_weight(name, N, K), backend.device):
            if residency != "expanded" or name == "2bit":
                yield residency if residency == "expanded" else f"packed {name}", weight


def _torch_products(x: Tensor, N: int, K: int) -> Iterator[tuple[str, Call]]:  # noqa: N803
    half, matrix = x.bfloat16(), torch.randn(N, K, device=x.device).bfloat16()
    out = torch.empty(len(x), N, dtype=torch.bfloat16, device=x.device)
    yield CUBLAS, lambda: _drop(torch.mm(half, matrix.T, out=out))
    if len(x) >= _FEWEST_INT_MM_ROWS:
        codes = (x * 40).clamp(-127, 127).to(torch.int8)
        levels = torch.randint(-127, 128, (N, K), device=x.device).to(torch.int8)
        scale = torch.rand(N, device=x.device)
        yield "torch _int_mm, scaled", lambda: _drop(torch._int_mm(codes, levels.T) * scale)  # noqa: SLF001
    if x.is_cuda and len(x) <= _MOST_INT4_ROWS and K % _INT4_GROUP == 0:
        packed = torch.randint(0, 256, (N, K // 2), device=x.device).to(torch.uint8)
        weight = torch._convert_weight_to_int4pack(packed, 8)  # noqa: SLF001
        scales = torch.rand(K // _INT4_GROUP, N, 2, device=x.device).bfloat16()
        yield (
            INT4,
            lambda: _drop(torch._weight_int4pack_mm(half, weight, _INT4_GROUP, scales)),  # noqa: SLF001
        )


def _best_tile(call: Callable[[Tile], None], tiles: tuple[Tile, ...], clock: Clock) -> Tile | None:
    """The fastest that compiles and fits; None without any to try."""
    found: list[tuple[float, Tile]] = []
    for tile in tiles:
        try:
            found.append((clock.warm(partial(call, tile)), tile))
        except kernel_errors():  # too much shared memory, or no such layout
            continue
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _timed(
    what: str, system: str, size: tuple[int, ...], call: Call, work: float, clock: Clock
) -> GpuTime:
    try:
        warm, cold = clock.warm(call), clock.cold(call)
    except kernel_errors() as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else "failed"
        return GpuTime(what, system, size, 0.0, 0.0, 0.0, reason)
    return GpuTime(what, system, size, 1e6 * warm, 1e6 * cold, work / warm if warm else 0.0)


def _repeat(call: Call, count: int) -> Call:
    def calls() -> None:
        for _ in range(count):
            call()

    return calls


def _drop(_: Tensor) -> None:
    """What is timed is that it was computed."""
