"""What of the GPU's backend needs neither a GPU nor Triton: layouts, tiles, refusals."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantized_lm.errors import BackendError
from quantized_lm.ops import BACKENDS, gpu, select_backend
from quantized_lm.ops.device_layout import (
    DeviceWeight,
    expand,
    is_alike,
    lay_out,
    stack,
)
from quantized_lm.ops.tiles import (
    BUCKETS,
    Tile,
    TileKey,
    bucket_of,
    read_tiles,
    write_tiles,
)
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor


def weight_of(
    name: str, num_rows: int, num_columns: int, group_size: int | None = None
) -> QuantizedTensor:
    rng = np.random.default_rng(num_columns)
    levels = np.array(FORMATS[name].levels, np.int8)
    groups = 1 if group_size is None else -(-num_columns // group_size)
    return QuantizedTensor.from_codes(
        rng.integers(0, len(levels), (num_rows, num_columns), dtype=np.uint8),
        rng.uniform(0.1, 1, (num_rows, groups)).astype(np.float16),
        levels,
        format=name,
        group_size=group_size,
    )


def levels_of(weight: DeviceWeight, row: int, column: int) -> int:
    """One level, by the formula of the layout's docstring."""
    layout = weight.layout
    group, within = divmod(column, layout.group_size)
    block, rest = divmod(within, layout.planes * layout.tile)
    plane, position = divmod(rest, layout.tile)
    first = (group * layout.blocks_per_group + block) * layout.tile
    if layout.bits == 8:
        return int(weight.words[row, first + position].view(torch.int8))
    words = weight.words.numpy().view(np.uint32)
    word = int(words[row, first // 4 + position // 4])
    shift = 4 * (position % 4) + 16 * (plane & 1) + layout.bits * (plane >> 1)
    return int(weight.levels[word >> shift & (1 << layout.bits) - 1])


@pytest.mark.parametrize("shape", [(3, 1), (2, 515), (2, 512)])
@pytest.mark.parametrize("name", FORMATS)
def test_every_code_is_where_the_layout_says(name: str, shape: tuple[int, int]) -> None:
    tensor = weight_of(name, *shape)
    expected = tensor.levels[tensor.codes()]
    packed = lay_out(tensor, expands=False)
    for weight in (packed, expand(packed), lay_out(tensor, expands=True)):
        for column in range(shape[1]):
            assert levels_of(weight, 1, column) == expected[1, column]
    bits = {"1bit": 1 if shape[1] == 512 else 2, "ternary": 2, "2bit": 2, "4bit": 4, "8bit": 8}
    assert (expand(packed).layout.bits, packed.layout.bits) == (8, bits[name])
    ratio = 8 // packed.layout.bits
    assert packed.words.nbytes * ratio >= shape[0] * shape[1]


def test_groups_are_expanded_and_padded() -> None:
    tensor = weight_of("2bit", 2, 100, 48)
    weight = lay_out(tensor, expands=False)
    assert (weight.layout.bits, weight.layout.num_groups, weight.layout.row_bytes) == (8, 3, 192)
    assert [levels_of(weight, 0, column) for column in range(100)] == tensor.levels[tensor.codes()][
        0
    ].tolist()


def test_weights_that_lie_alike_can_be_stacked() -> None:
    one, two = (lay_out(weight_of("2bit", rows, 40), expands=False) for rows in (3, 5))
    assert is_alike(one, two)
    both = stack([one, two])
    assert both.layout.num_rows == 8
    assert torch.equal(both.words[3:], two.words)
    assert not is_alike(one, lay_out(weight_of("ternary", 3, 40), expands=False))
    assert not is_alike(one, lay_out(weight_of("2bit", 3, 41), expands=False))


def test_tables_hold_the_levels_in_order() -> None:
    weight = lay_out(weight_of("4bit", 2, 8), expands=False)
    table = np.array(weight.tables, np.uint32).view(np.int8)
    assert table.tolist() == weight.levels.tolist() == list(FORMATS["4bit"].levels)


def test_a_measured_tile_is_taken_and_survives_a_file() -> None:
    key, tile = TileKey("matmul", 2, 64, 512, 512), Tile(64, 32, 4, 4)
    text = write_tiles("GPU X", {key: tile}, '{"GPU Y": []}')
    table = read_tiles("GPU X", text)
    assert table.choose(key) == tile
    assert table.choose(TileKey("matmul", 2, 600, 2048, 512)) == tile  # the nearest there is
    assert table.choose(TileKey("matmul", 4, 16, 512, 512)) == Tile(64, 16, 4, 3)  # the rule's
    assert read_tiles("GPU Y", text).tiles == read_tiles("GPU Z").tiles == {}


def test_the_output_layers_tile_does_not_depend_on_the_number_of_nodes() -> None:
    chosen = {read_tiles("").choose(TileKey("output", 8, num, 999, 64)) for num in BUCKETS}
    assert len(chosen) == 1


def test_a_bucket_holds_what_it_is_for() -> None:
    assert [bucket_of(count) for count in (1, 2, 385, 4096)] == [1, 16, 512, 4096]
    assert all(bucket_of(count) < 1.34 * count for count in range(385, 4097))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU in name: Triton is there, and torch says what the test wants."""
    found = SimpleNamespace(is_built=True, is_there=True, capability=(9, 0), free=8 << 30)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: found.is_built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found.is_there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: found.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU X")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (found.free, 0))
    return found


def test_a_gpu_that_lacks_nothing_is_available(device: SimpleNamespace) -> None:
    assert gpu.why_unavailable() is None
    assert device.is_there


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_built": False}, "this torch is a build for CPUs; install its CUDA build, or"),
        ({"is_there": False}, "torch finds no CUDA device;"),
        ({"capability": (7, 5)}, "GPU X has compute capability 7.5, 8.0 is needed;"),
        ({"free": 5 << 20}, "5 MB of the GPU are free, 1024 are needed;"),
    ],
)
def test_what_a_gpu_lacks_is_said(
    device: SimpleNamespace, change: dict[str, object], reason: str
) -> None:
    vars(device).update(change)
    assert gpu.why_unavailable() == f"{reason} use the CPU engine, --device cpu"


def test_without_triton_the_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else find(name)
    )
    assert not BACKENDS["triton"].is_available
    for name, where in (("triton", "auto"), ("auto", "cuda")):
        with pytest.raises(BackendError, match=r"secondpass\[gpu\], or use the CPU engine, --dev"):
            select_backend(name, device=where)
    assert not gpu.is_interpreted()
