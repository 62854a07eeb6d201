"""A model without weights: a table from a seed, behind the same interface as a real one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantized_lm.artifact import LoadedModel
from quantized_lm.manifest import Manifest
from quantized_lm.tensor_entry import TensorEntry
from quantized_lm.tokenizer import BOUNDARY_ID, TextRules, Tokenizer

WORDS = "the cat sat on a mat and saw an old dog run far from it"
VOCAB_SIZE = 64


@dataclass
class TableState:
    """Per node, the sum of the tokens from the root to it; node 0 is the boundary."""

    sums: list[int]


@dataclass
class TableModel:
    """log P(token | path): the sum of the path's tokens chooses a row of a seeded table.

    So a score depends on the whole path, context included, as that of a real model does.

    Attributes:
        error: raised by `extend` instead of an answer, if set.
        gate: `extend` waits for it, so that a test decides when the engine is busy.
        entered: set when `extend` is called.
        batch_sizes: number of trees in each call of `extend`.
    """

    vocab_size: int = VOCAB_SIZE
    max_tokens: int = 64
    seed: int = 0
    error: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batch_sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        logits = np.random.default_rng(self.seed).normal(size=(self.vocab_size, self.vocab_size))
        log_sum = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self.table = (logits - log_sum).astype(np.float32)

    def new_state(self, context: Sequence[int] = ()) -> TableState:
        """A tree of the boundary and the context path."""
        return TableState(list(itertools.accumulate((BOUNDARY_ID, *context))))

    def fork(self, state: TableState, nodes: NDArray[np.int32]) -> TableState:
        """As LanguageModel.fork."""
        return TableState([state.sums[node] for node in nodes.tolist()])

    def state_bytes(self, state: TableState) -> int:
        """As LanguageModel.state_bytes."""
        return 8 * len(state.sums)

    def extend(
        self,
        states: Sequence[TableState],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """As LanguageModel.extend."""
        self.entered.set()
        self.gate.wait()
        if self.error is not None:
            raise self.error
        self.batch_sizes.append(len(states))
        log_probs = []
        for state, parent, token in zip(states, parents, tokens, strict=True):
            rows = []
            for above, own in zip(parent.tolist(), token.tolist(), strict=True):
                rows.append(state.sums[above] % self.vocab_size)
                state.sums.append(state.sums[above] + own)
            log_probs.append(self.table[rows, token])
        return log_probs


def fake_tokenizer() -> Tokenizer:
    """Pieces of `WORDS`; letters it lacks are unknown."""
    return Tokenizer.train(iter([WORDS] * 3), vocab_size=VOCAB_SIZE, rules=TextRules())


def fake_loaded(name: str = "tiny", model: TableModel | None = None) -> LoadedModel:
    """A loaded model around a table."""
    tokenizer = fake_tokenizer()
    manifest = Manifest(
        format_version=1,
        name=name,
        architecture="table",
        config={},
        text=tokenizer.rules,
        boundary={},
        max_tokens=64,
        default_weights={"am_scale": 1.0, "lm_scale": 0.5, "word_bonus": 0.0},
        tensors={"table": TensorEntry("float32", (VOCAB_SIZE, VOCAB_SIZE), 0, 16384, 32.0)},
        parameters=VOCAB_SIZE * VOCAB_SIZE,
        bits_per_weight=32.0,
        size_bytes=16384,
        license="CC0-1.0",
        provenance={"made_by": "a test"},
    )
    return LoadedModel(
        name=name,
        revision=f"sha256:{name}",
        backend="fake/table",
        manifest=manifest,
        tokenizer=tokenizer,
        model=model or TableModel(),
    )


def spelling_loaded() -> LoadedModel:
    """A model that spells, and so takes more tokens for real sentences than `fake_loaded` may."""
    spelling = fake_loaded(model=TableModel(max_tokens=256))
    return replace(spelling, manifest=replace(spelling.manifest, max_tokens=256))


class FakeLoader:
    """Stands for `load_artifact`: the folder's name chooses the model."""

    def __init__(self, *models: LoadedModel) -> None:
        self._models = {model.name: model for model in models}

    def __call__(self, folder: Path, _backend: str) -> LoadedModel:
        """The model of that name."""
        return self._models[folder.name]
