"""A lattice as a drawing in the DOT language. Writes text; what draws it is `dot` of Graphviz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.lattice import Lattice

MOST_ARCS = 200
_HEAD = """digraph lattice {
  rankdir=LR; bgcolor=white; fontname="Helvetica"; labeljust=l;
  node [shape=circle, fontname="Helvetica", fontsize=10, width=0.3, fixedsize=true];
  edge [fontname="Helvetica", fontsize=9];
"""


@dataclass(frozen=True)
class Drawing:
    """A lattice and what stands above it."""

    title: str
    lattice: Lattice


def dot_text(drawings: Sequence[Drawing]) -> str:
    """Lattices below each other: a word and am + graph in nats on each arc, the best path bold.

    Raises:
        LatticeError: one has more arcs than can be seen.
    """
    return _HEAD + "".join(_cluster(at, one) for at, one in enumerate(drawings)) + "}\n"


def best_path(lattice: Lattice) -> list[int]:
    """Arcs of the path with the best am + graph; of equal ones those that come first."""
    score = (lattice.am + lattice.graph).tolist()
    to_end = [-np.inf] * lattice.num_states
    to_end[lattice.final] = 0.0
    best_arc = [-1] * lattice.num_states
    ends = list(zip(lattice.src.tolist(), lattice.dst.tolist(), strict=True))
    for arc in range(lattice.num_arcs - 1, -1, -1):
        src, dst = ends[arc]
        if best_arc[src] < 0 or score[arc] + to_end[dst] >= to_end[src]:
            to_end[src], best_arc[src] = score[arc] + to_end[dst], arc
    path, state = [], 0
    while state != lattice.final:
        path.append(best_arc[state])
        state = ends[path[-1]][1]
    return path


def _cluster(index: int, drawing: Drawing) -> str:
    lattice = drawing.lattice
    if lattice.num_arcs > MOST_ARCS:
        raise LatticeError(
            f"{drawing.title}: the lattice has {lattice.num_arcs} arcs; a drawing takes at most "
            f"{MOST_ARCS}"
        )
    bold = set(best_path(lattice))
    lines = [
        f"  subgraph cluster_{index} {{",
        f"    label={_quoted(drawing.title)};",
        f"    {_node(index, lattice.final)} [shape=doublecircle];",
    ]
    lines += [
        f'    {_node(index, state)} [label="{state}"];' for state in range(lattice.num_states)
    ]
    for arc in range(lattice.num_arcs):
        style = ", penwidth=2.5" if arc in bold else ""
        src, dst = _node(index, int(lattice.src[arc])), _node(index, int(lattice.dst[arc]))
        lines.append(f"    {src} -> {dst} [label={_quoted(_label(lattice, arc))}{style}];")
    return "\n".join([*lines, "  }\n"])


def _node(index: int, state: int) -> str:
    return f"n{index}_{state}"


def _label(lattice: Lattice, arc: int) -> str:
    ids = lattice.words.row(arc).tolist()
    words = [lattice.symbols[word] if lattice.symbols else str(word) for word in ids]
    number = f"{lattice.am[arc] + lattice.graph[arc]:.2f}"
    return f"{' '.join(words)}\n{number}" if words else number


def _quoted(text: str) -> str:
    """A label of DOT: quotes and backslashes as they are, line breaks as DOT writes them."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
