"""Made-up lattices for the tests of formats, and what of them a format holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from hypothesis import strategies as st

from quantized_lm.lattice.formats import ReadOptions
from quantized_lm.lattice.lattice import Column, Lattice, Ragged, require_valid
from quantized_lm.lattice.ragged import ragged

SYMBOLS = {1: "hello", 2: "it's", 3: 'say "so"', 4: "[noise]", 9: "wörld"}
OPTIONS = ReadOptions(symbols=SYMBOLS)
Pair = tuple[float, float]
Path = tuple[object, ...]


def make_lattice(
    arcs: list[tuple[int, int, list[int], float, float]],
    *,
    symbols: Mapping[int, str] | None = SYMBOLS,
    utterance: str = "u1",
    attributes: Mapping[str, Column | Ragged] | None = None,
) -> Lattice:
    """A lattice of arcs (src, dst, words, am, graph)."""
    src, dst, words, am, graph = zip(*arcs, strict=True)
    flat = np.array([word for row in words for word in row], np.int32)
    return require_valid(
        Lattice(
            src=np.array(src, np.int32),
            dst=np.array(dst, np.int32),
            words=ragged(list(map(len, words)), flat),
            am=np.array(am, np.float64),
            graph=np.array(graph, np.float64),
            symbols=symbols,
            arc_attributes=attributes or {},
            utterance=utterance,
        )
    )


def small(**attributes: Column | Ragged) -> Lattice:
    """Two paths of two words; the arc into the final state has none."""
    return make_lattice(
        [
            (0, 1, [1], -1.5, -0.1),
            (0, 1, [2], -2.25, 0.0),
            (1, 2, [9], 0.3, -3.0),
            (2, 3, [], -0.125, 0.0),
        ],
        attributes=attributes,
    )


_SINGLE = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
_SCORE = st.one_of(_SINGLE, st.floats(-1e4, 0).filter(lambda x: x == 0 or x < -1e-3))
_SCORES = st.tuples(
    st.one_of(_SCORE, st.just(-np.inf)), st.one_of(st.just(0.0), _SCORE, st.just(-np.inf))
)


@st.composite
def lattices(draw: st.DrawFn) -> Lattice:
    """Two to six states in a row, arcs between any two, none to two words on each."""
    last = draw(st.integers(1, 5))
    ends = [(state, state + 1) for state in range(last)]
    more = st.tuples(st.integers(0, last), st.integers(0, last)).filter(
        lambda pair: pair[0] < pair[1]
    )
    ends = sorted(ends + draw(st.lists(more, max_size=4)))
    words = st.lists(st.sampled_from(sorted(SYMBOLS)), max_size=2)
    arcs = [(src, dst, draw(words), *draw(_SCORES)) for src, dst in ends]
    return make_lattice(arcs)


def paths(lattice: Lattice, held: Callable[[float, float], Pair]) -> list[Path]:
    """What is read along each path: scores as a format holds them, unless 0, and words."""
    found: list[list[Path]] = [[] for _ in range(lattice.num_states)]
    found[0] = [()]
    for arc in range(lattice.num_arcs):
        am, graph = held(float(lattice.am[arc]), float(lattice.graph[arc]))
        pair = (am + 0.0, graph + 0.0)  # without the sign of zero
        symbols = lattice.symbols or SYMBOLS
        words = [symbols[int(word)] for word in lattice.words.row(arc)]
        step = (*([pair] if any(pair) else []), *words)
        found[lattice.dst[arc]] += [(*path, *step) for path in found[lattice.src[arc]]]
    return sorted(found[-1], key=repr)


def exact(am: float, graph: float) -> Pair:
    """Both scores, every bit."""
    return am, graph


def total(am: float, graph: float) -> Pair:
    """Their sum alone."""
    return am + graph, 0.0


def singles(am: float, graph: float) -> Pair:
    """Both scores as float32."""
    return float(np.float32(am)), float(np.float32(graph))


def k2_total(am: float, graph: float) -> Pair:
    """Their sum as float32."""
    return float(np.float32(am + graph)), 0.0


def k2(am: float, graph: float) -> Pair:
    """The sum and the graph score as float32."""
    score, lm_score = np.float64(np.float32(am + graph)), np.float64(np.float32(graph))
    return float(score if np.isinf(score) else score - lm_score), float(lm_score)


HELD: Mapping[str, Callable[[float, float], Pair]] = {
    "k2-json": k2,
    "k2-safetensors": k2,
    "k2-pt": k2,
    "k2-text": k2_total,
    "kaldi-text": exact,
    "kaldi-binary": singles,
    "htk": exact,
    "openfst-text": total,
}
