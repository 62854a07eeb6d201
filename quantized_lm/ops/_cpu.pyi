"""Types of the native module; csrc/bindings*.cpp says what each argument means."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = Tensor | NDArray[Any]

PANEL: int
MAX_COLUMNS: int
ROW_BLOCK: int

def instruction_sets() -> list[str]: ...
def lookup_layout(isa: str) -> int: ...
def measure_peaks(threads: int, bursts: int, only: str) -> list[tuple[str, str, float]]: ...

class Weight:
    def __init__(
        self, words: Array, scale: Array, levels: Array, layout: Sequence[int]
    ) -> None: ...

class Pool:
    def __init__(self, threads: int, pins: bool) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def handle(self) -> int: ...

def linear(x: Tensor, weight: Weight, isa: str, pool: int, y: Tensor) -> None: ...
def embed(tokens: Tensor, weight: Weight, isa: str, pool: int, y: Tensor) -> None: ...
def gather_log_prob(
    hidden: Tensor, rows: Tensor, tokens: Tensor, weight: Weight, isa: str, pool: int, y: Tensor
) -> None: ...
def time_linear(x: Tensor, weight: Weight, isa: str, repeats: int) -> float: ...

class Floats:
    def __init__(self, numbers: NDArray[np.float32] | None) -> None: ...

class Activation(Enum):
    squared_relu = ...
    gelu_tanh = ...

class NormPlan:
    gain: Floats
    bias: Floats
    epsilon: float
    subtracts_mean: bool

class ProjectionPlan:
    weight: Weight
    bias: Floats

class BlockPlan:
    attention_norm: NormPlan
    ffn_norm: NormPlan
    qkv: ProjectionPlan
    out: ProjectionPlan
    up: ProjectionPlan
    down: ProjectionPlan
    mix_stream: float
    mix_embedding: float

class TransformerPlan:
    model_dim: int
    num_heads: int
    ffn_dim: int
    max_tokens: int
    embedding: Weight
    positions: Floats
    cos: Floats
    sin: Floats
    normalizes_embedding: bool
    normalizes_qk: bool
    norm_epsilon: float
    activation: Activation
    blocks: list[BlockPlan]
    final_norm: NormPlan

class Tree:
    def __len__(self) -> int: ...
    @property
    def run_nodes(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...

class LstmLayerPlan:
    input: list[ProjectionPlan]
    recurrent: list[ProjectionPlan]

class LstmPlan:
    model_dim: int
    max_tokens: int
    embedding: Weight
    layers: list[LstmLayerPlan]

class Engine:
    def new_tree(self, path: Sequence[int]) -> Tree: ...
    def fork(self, tree: Tree, nodes: NDArray[np.int32]) -> Tree: ...
    def extend(
        self,
        trees: Sequence[Tree],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
        log_prob: NDArray[np.float32],
    ) -> None: ...

class Transformer(Engine):
    def __init__(self, isa: str, pool: Pool, plan: TransformerPlan) -> None: ...

class Lstm(Engine):
    def __init__(self, isa: str, pool: Pool, plan: LstmPlan) -> None: ...

class WordPrefixes:
    def __init__(
        self,
        src: NDArray[np.int32],
        dst: NDArray[np.int32],
        word: NDArray[np.int32],
        score: NDArray[np.float64],
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def num_followed(self) -> int: ...
    def scores_to_end(self, word_score: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def expect(self, word_score: NDArray[np.float64]) -> None: ...
    def grow(self, prefix: int) -> tuple[float, NDArray[np.int32], NDArray[np.int32]]: ...
    def bounds(self, prefixes: NDArray[np.int32]) -> NDArray[np.float64]: ...
    def expected(self, prefixes: NDArray[np.int32]) -> NDArray[np.float64]: ...
    def merge(
        self, prefixes: NDArray[np.int32], other_score: NDArray[np.float64], order: int
    ) -> int: ...
    def best(self, k: int, most_arcs: int) -> NDArray[np.int32]: ...
    def words(self, prefix: int) -> NDArray[np.int32]: ...
    def path(self, prefix: int) -> NDArray[np.int32]: ...
    def parent(self, prefix: int) -> int: ...
    def word(self, prefix: int) -> int: ...
    def end_score(self, prefix: int) -> float: ...

class SearchLimits:
    def __init__(
        self,
        num_best: int,
        seeds: int,
        order: int,
        beam: float,
        patience: int,
        max_lm_steps: int,
        max_arcs: int,
    ) -> None: ...

class Reading:
    def __init__(self, lm_scale: float, num_context: int, deepest: int, is_final: bool) -> None: ...

class LatticeSearch:
    def __init__(
        self,
        src: NDArray[np.int32],
        dst: NDArray[np.int32],
        word: NDArray[np.int32],
        score: NDArray[np.float64],
        first_piece: NDArray[np.int32],
        pieces: NDArray[np.int32],
        limits: SearchLimits,
        reading: Reading,
    ) -> None: ...
    @property
    def lattice(self) -> WordPrefixes: ...
    @property
    def first_seed(self) -> int | None: ...
    @property
    def is_over(self) -> bool: ...
    @property
    def cuts(self) -> int: ...
    @property
    def num_run(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...
    def next_wave(self) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None: ...
    def learn(self, log_prob: NDArray[np.float32]) -> None: ...
    def stop(self) -> None: ...
    def found(self) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]: ...
    def log_prob(self, prefix: int) -> float: ...
