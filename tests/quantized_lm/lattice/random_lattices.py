"""Small random lattices, and every word sequence of one by following all of its paths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantized_lm.lattice.lattice import Lattice, Ragged, require_valid
from tests.fakes import WORDS

SYMBOLS = (*WORDS.split(), "<eps>", "!NULL", "catdog", "run-far")


def random_lattice(seed: int, *, max_states: int = 7, max_extra: int = 10) -> Lattice:
    """Words, silence, arcs of two words, parallel arcs and words that are several tokens."""
    rng = np.random.default_rng(seed)
    num_states = int(rng.integers(2, max_states + 1))
    pairs = [(state, int(rng.integers(state + 1, num_states))) for state in range(num_states - 1)]
    pairs += [(int(rng.integers(0, state)), state) for state in range(1, num_states)]
    for _ in range(int(rng.integers(0, max_extra + 1))):
        src = int(rng.integers(0, num_states - 1))
        pairs.append((src, int(rng.integers(src + 1, num_states))))
    pairs.sort()
    lists = [
        rng.integers(1, len(SYMBOLS) + 1, size=rng.choice(4, p=(0.2, 0.6, 0.15, 0.05)))
        for _ in pairs
    ]
    splits = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int32)
    return require_valid(
        Lattice(
            src=np.array([src for src, _ in pairs], np.int32),
            dst=np.array([dst for _, dst in pairs], np.int32),
            words=Ragged(splits, np.concatenate(lists).astype(np.int32)),
            am=rng.normal(scale=3.0, size=len(pairs)),
            graph=rng.normal(scale=1.0, size=len(pairs)),
            symbols=dict(enumerate(SYMBOLS, start=1)),
        )
    )


def paths(lattice: Lattice, state: int = 0) -> Iterator[list[int]]:
    """The arcs of every path to the end."""
    if state == lattice.final:
        yield []
        return
    for arc in np.flatnonzero(lattice.src == state).tolist():
        for rest in paths(lattice, int(lattice.dst[arc])):
            yield [arc, *rest]


def words_of(lattice: Lattice, arcs: list[int]) -> tuple[str, ...]:
    """What a path says: all its symbols but those of silence."""
    assert lattice.symbols is not None
    symbols = [lattice.symbols[word] for arc in arcs for word in lattice.words.row(arc).tolist()]
    return tuple(symbol for symbol in symbols if symbol not in {"<eps>", "!NULL"})
