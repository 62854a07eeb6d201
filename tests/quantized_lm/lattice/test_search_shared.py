"""Real lattices, cut down until all their sequences can be tried: the best of them are found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantized_lm.artifact import LoadedModel, bundled_path, load_artifact
from quantized_lm.lattice.files import read_lattices
from quantized_lm.lattice.lattice import Lattice, Ragged, require_valid
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.spoken import ArcWeights
from quantized_lm.lattice_scoring import LatticeRequest, score_lattices
from quantized_lm.scoring import ScoreRequest, score_lists
from quantized_lm.tokenizer import is_word

COUNT = 20
BEAMS = (200.0, 100.0, 50.0, 25.0, 12.0, 6.0, 3.0, 1.5, 0.7, 0.3, 0.1, 0.03, 0.01, 0.0)
MOST_SEQUENCES = 1_000
WEIGHTS = ArcWeights(word_bonus=-8.0)
LM_SCALE = 10.0


@pytest.fixture(scope="module")
def en_tiny() -> LoadedModel:
    return load_artifact(bundled_path("en-tiny"))


def real_lattices(shared_data: Path) -> Iterator[Lattice]:
    for name in ("pocketsphinx_libri", "pocketsphinx_ljprompts", "pocketsphinx_an4_test"):
        for path in sorted((shared_data / "lattices" / name).iterdir())[:8]:
            (lattice,) = read_lattices(path)
            yield lattice


def through(lattice: Lattice) -> NDArray[np.float64]:
    """(E,) the score of the best path over each arc."""
    to, onward = np.full((2, lattice.num_states), -np.inf)
    to[0] = onward[lattice.final] = 0.0
    arcs = list(zip(lattice.src.tolist(), lattice.dst.tolist(), lattice.am.tolist(), strict=True))
    for src, dst, score in arcs:
        to[dst] = max(to[dst], to[src] + score)
    for src, dst, score in reversed(arcs):
        onward[src] = max(onward[src], onward[dst] + score)
    total: NDArray[np.float64] = to[lattice.src] + lattice.am + onward[lattice.dst]
    return total


def pruned(lattice: Lattice, beam: float) -> Lattice:
    """The arcs on paths within a beam of the best one."""
    best = through(lattice)
    kept = np.flatnonzero(best >= best.max() - beam)
    states = np.unique(np.concatenate((lattice.src[kept], lattice.dst[kept])))
    lengths = np.diff(lattice.words.splits)
    values = lattice.words.values[np.repeat(np.isin(np.arange(lattice.num_arcs), kept), lengths)]
    return require_valid(
        Lattice(
            src=np.searchsorted(states, lattice.src[kept]).astype(np.int32),
            dst=np.searchsorted(states, lattice.dst[kept]).astype(np.int32),
            words=Ragged(np.cumsum([0, *lengths[kept]]).astype(np.int32), values),
            am=lattice.am[kept],
            graph=lattice.graph[kept],
            symbols=lattice.symbols,
        )
    )


def sequences_of(lattice: Lattice) -> dict[tuple[str, ...], float]:
    """All word sequences that there are, and the best score of each; none if there are too many."""
    assert lattice.symbols is not None
    reached: list[dict[tuple[str, ...], float]] = [{} for _ in range(lattice.num_states)]
    reached[0][()] = 0.0
    for arc, (src, dst) in enumerate(zip(lattice.src.tolist(), lattice.dst.tolist(), strict=True)):
        symbols = [lattice.symbols[word] for word in lattice.words.row(arc).tolist()]
        said = tuple(symbol for symbol in symbols if is_word(symbol))
        added = float(lattice.am[arc]) + WEIGHTS.word_bonus * len(said)
        for words, score in reached[src].items():
            longer = words + said
            reached[dst][longer] = max(reached[dst].get(longer, -np.inf), score + added)
        if len(reached[dst]) > MOST_SEQUENCES:
            return {}
    return reached[lattice.final]


def test_the_search_equals_enumeration(shared_data: Path, en_tiny: LoadedModel) -> None:
    seen = 0
    for whole in real_lattices(shared_data):
        cut = (pruned(whole, beam) for beam in BEAMS)
        lattice, sequences = next(
            (one, found) for one in cut if (found := sequences_of(one)) or one.num_arcs < 2
        )
        texts = [" ".join(words) for words in sequences]
        (as_list,) = score_lists([ScoreRequest(tuple(texts))], en_tiny)
        totals = np.array(list(sequences.values())) + LM_SCALE * as_list.log_prob
        request = LatticeRequest(lattice, WEIGHTS, LM_SCALE, SearchLimits.exact(num_best=5))
        (searched,) = score_lattices([request], en_tiny)
        assert searched.is_exact
        ranked = np.argsort(-totals, kind="stable")[:5]
        np.testing.assert_allclose(
            [one.total for one in searched.hypotheses], totals[ranked], atol=1e-3 * LM_SCALE
        )
        assert searched.hypotheses[0].text == texts[ranked[0]]
        merged = replace(request, limits=SearchLimits(num_best=1))
        assert score_lattices([merged], en_tiny)[0].hypotheses[0].total <= totals.max() + 1e-2
        seen += len(texts) > 1
    assert seen >= COUNT
