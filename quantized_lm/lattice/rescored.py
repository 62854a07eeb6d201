"""The sequences a search has scored, as a lattice: on the arcs of their best paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantized_lm.lattice.lattice import Lattice, require_valid
from quantized_lm.lattice.ragged import take, take_lists, take_rows
from quantized_lm.lattice.search import FoundSequence, LatticeSearch
from quantized_lm.lattice.spoken import ArcWeights, SpokenLattice, weighed

LM = "lm"
_SCALES = ("acscale", "lmscale", "ngscale", "wdpenalty", "prscale")  # of HTK
Node = tuple[int, int]  # state of the source, prefix: in this order they are topological


@dataclass(frozen=True)
class Weighing:
    """What every score counted for in the search."""

    weights: ArcWeights
    lm_scale: float


def rescored_lattice(
    lattice: Lattice,
    spoken: SpokenLattice,
    search: LatticeSearch,
    sequences: Sequence[FoundSequence],
    weighing: Weighing,
) -> Lattice:
    """A lattice of these word sequences and no others.

    A state is one of the source and the words that lead there. Arcs keep the source's attributes.
    Scores are weighed, so that am + graph along the best path of a sequence is its total:

        am = am_scale * am; graph = graph_scale * graph + lm_scale * lm + bonuses

    The arc attribute "lm" has the LM's own nats, (E,) float32; those of `</s>` are on the arcs into
    the final state. It is 0 everywhere where the LM was not asked.

    Args:
        lattice: what was searched. spoken: the same. search: in which the sequences were found.
        sequences: at least one.
        weighing: that of the search.
    """
    edges: dict[tuple[Node, Node, int], tuple[float, float]] = {}
    for found in sequences:
        edges.update(_edges(lattice, spoken, search, found))
    order = sorted(edges)
    nodes = sorted({node for src, dst, _ in order for node in (src, dst)})
    number = {node: index for index, node in enumerate(nodes)}
    arcs = np.array([arc for _, _, arc in order], np.int64)
    states = np.array([state for state, _ in nodes], np.int64)
    lm, bonus = np.array([edges[edge] for edge in order]).T
    lm_term = weighing.lm_scale * lm if weighing.lm_scale else np.zeros(len(lm))
    words = take_lists(lattice.words, arcs)
    attributes = {name: take(column, arcs) for name, column in lattice.arc_attributes.items()}
    rescored = replace(
        lattice,
        src=np.array([number[src] for src, _, _ in order], np.int32),
        dst=np.array([number[dst] for _, dst, _ in order], np.int32),
        words=words,
        am=weighed(lattice.am[arcs], weighing.weights.am_scale),
        graph=weighed(lattice.graph[arcs], weighing.weights.graph_scale) + lm_term + bonus,
        arc_attributes={**attributes, LM: lm.astype(np.float32)},
        state_attributes={
            name: take_rows(column, states) for name, column in lattice.state_attributes.items()
        },
        header={name: value for name, value in lattice.header.items() if name not in _SCALES},
    )
    return require_valid(rescored)


def _edges(
    lattice: Lattice,
    spoken: SpokenLattice,
    search: LatticeSearch,
    found: FoundSequence,
) -> dict[tuple[Node, Node, int], tuple[float, float]]:
    """(source node, destination, arc) -> (LM's nats, bonus) along one sequence's best path."""
    path = search.path(found.prefix)
    arcs, word = spoken.arc[path].tolist(), spoken.word[path].tolist()
    chain = search.chain(found.prefix)
    is_scored = not np.isnan(found.log_prob)
    word_lm = search.log_probs(found.prefix) if is_scored else [0.0] * (len(chain) - 1)
    ending = found.log_prob - sum(word_lm) if is_scored else 0.0
    edges = {}
    at, position = 0, 0
    src: Node = (0, chain[0])
    while position < len(arcs):
        arc, lm, bonus = arcs[position], 0.0, 0.0
        while position < len(arcs) and arcs[position] == arc:  # the parts of an arc of many words
            if word[position]:
                lm += word_lm[at]
                bonus += float(spoken.bonus[word[position]])
                at += 1
            position += 1
        state = int(lattice.dst[arc])
        is_last = state == lattice.final
        dst = (state, 0 if is_last else chain[at])
        edges[src, dst, arc] = (lm + ending if is_last else lm, bonus)
        src = dst
    return edges
