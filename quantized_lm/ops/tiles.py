"""How much of a product one program of the GPU computes: a table that was measured, or a rule.

Tiles change speed and nothing else. `secondpass bench --gpu --tune` writes the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from types import MappingProxyType

TABLE = "tiles.json"
# The number of nodes of a pass is rounded up to one of these: kernels are made and graphs recorded
# for them alone. Padding is below a third from 385 nodes on, where nodes begin to cost.
BUCKETS = (
    1,
    16,
    32,
    64,
    128,
    192,
    256,
    384,
    512,
    640,
    768,
    1024,
    1280,
    1536,
    2048,
    2560,
    3072,
    4096,
)
# Where nothing is recorded and every row of padding takes its time.
INTERPRETED_BUCKETS = tuple(1 << power for power in range(13))


@dataclass(frozen=True)
class Tile:
    """A product's tile.

    Attributes:
        rows: of the weight. nodes: rows of x. warps, stages: of a program.
    """

    rows: int
    nodes: int
    warps: int
    stages: int


@dataclass(frozen=True)
class TileKey:
    """What a tile was measured for.

    Attributes:
        kernel: "matmul" or "output". bits: 1, 2, 4 or 8. num_nodes: M, 0 for any.
    """

    kernel: str
    bits: int
    num_nodes: int
    num_rows: int
    num_columns: int

    def distance(self, other: TileKey) -> float:
        """How unlike two products are, in powers of two."""
        pairs = (
            (self.num_nodes + 1, other.num_nodes + 1),
            (self.num_rows, other.num_rows),
            (self.num_columns, other.num_columns),
        )
        return sum(abs(math.log2(one / two)) for one, two in pairs)


@dataclass(frozen=True)
class TileTable:
    """Measured tiles of one kind of GPU; empty where none were measured."""

    tiles: Mapping[TileKey, Tile]

    def choose(self, key: TileKey) -> Tile:
        """The tile of the nearest product of this kernel and width of code, else a rule's."""
        known = [one for one in self.tiles if (one.kernel, one.bits) == (key.kernel, key.bits)]
        if not known:
            return default_tile(key)
        return self.tiles[min(known, key=key.distance)]


def default_tile(key: TileKey) -> Tile:
    """Narrow for few nodes, else wide; the output layer's does not depend on their number."""
    if key.kernel == "output":
        return Tile(rows=128, nodes=64, warps=4, stages=3)
    nodes = next((width for width in (16, 32, 64) if key.num_nodes <= width), 128)
    if key.num_nodes <= 64 or key.num_rows * key.num_nodes <= 128 * 128 * 132:
        return Tile(rows=64, nodes=min(nodes, 64), warps=4, stages=3)
    # Two programs shall fit on a multiprocessor: 113 KB of shared memory for each.
    nodes = min(nodes, 64) if key.bits == 1 else nodes
    return Tile(rows=128, nodes=nodes, warps=8, stages=2 if key.bits == 4 else 3)


def read_tiles(gpu: str, text: str | None = None) -> TileTable:
    """The table of a kind of GPU.

    Args:
        gpu: as torch names it.
        text: of a table; None for the one that ships with the package.
    """
    record = json.loads(text or files("quantized_lm.ops").joinpath(TABLE).read_text())
    rows = record.get(gpu, [])
    found = {TileKey(**row["product"]): Tile(**row["tile"]) for row in rows}
    return TileTable(MappingProxyType(found))


def write_tiles(gpu: str, tiles: Mapping[TileKey, Tile], text: str) -> str:
    """The text of a table with this kind of GPU's tiles replaced."""
    record = json.loads(text)
    record[gpu] = [
        {"product": asdict(key), "tile": asdict(tile)}
        for key, tile in sorted(tiles.items(), key=lambda item: str(item[0]))
    ]
    return json.dumps(record, indent=1) + "\n"


def bucket_of(count: int, buckets: Sequence[int] = BUCKETS) -> int:
    """The smallest bucket that holds so many; the largest is the most that goes in at once."""
    return next(bucket for bucket in buckets if bucket >= count)
