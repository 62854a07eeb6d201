"""`secondpass inspect` on a lattice: what is in it, and a drawing of it before and after the LM."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from quantized_lm.artifact import LoadedModel
from quantized_lm.cli.weighting import WeightOptions, resolve
from quantized_lm.errors import DataError
from quantized_lm.files import write_named
from quantized_lm.lattice.dot import Drawing, dot_text
from quantized_lm.lattice.files import read_lattices
from quantized_lm.lattice.formats import LatticeFormat, ReadOptions
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice_scoring import LatticeRequest, arc_weights, score_lattices

_TEXT_SUFFIXES = (".dot", ".gv")
_DRAWN_SUFFIXES = (".svg", ".png", ".pdf")
_MOST_SEQUENCES = 10
_INSTALL = (
    "drawing needs Graphviz: install it (apt-get install graphviz) and secondpass[plot], or write "
    "a .dot file"
)


@dataclass(frozen=True)
class InspectedLattice:
    """A file of lattices, and what is to be known of it.

    Attributes:
        given: its format; None: the one its name ends in.
        plot: where to draw it; None where no drawing is wanted.
    """

    path: Path
    given: LatticeFormat | None
    reading: ReadOptions
    plot: Path | None


def inspect_lattice(asked: InspectedLattice, loaded: LoadedModel | None, console: Console) -> None:
    """Print the size of every lattice of a file, and draw the only one.

    Args:
        loaded: a LM that also rescores what is drawn.

    Raises:
        DataError: the file cannot be read or the drawing not be made, or several are to be drawn.
        LatticeError: a lattice is malformed, or too large to draw.
    """
    lattices = read_lattices(asked.path, asked.reading, source=asked.given)
    for lattice in lattices:
        for label, value in _facts(lattice).items():
            console.print(f"{label:<16} {value}", soft_wrap=True)
    if asked.plot is None:
        return
    if len(lattices) > 1:
        raise DataError(f"{asked.path}: has {len(lattices)} lattices; a drawing is of one")
    drawings = [Drawing("as it came", lattices[0])]
    if loaded is not None:
        drawings.append(Drawing(f"rescored by {loaded.name}", _rescored(lattices[0], loaded)))
    draw(asked.plot, drawings)


def draw(path: Path, drawings: Sequence[Drawing]) -> None:
    """Write a drawing: .dot as text; .svg, .png and .pdf by Graphviz.

    Raises:
        DataError: the suffix is another, Graphviz is not there, or the folder cannot be written.
        LatticeError: a lattice is too large.
    """
    text = dot_text(drawings)
    if path.suffix in _TEXT_SUFFIXES:
        content = text.encode()
    elif path.suffix in _DRAWN_SUFFIXES:
        content = _by_graphviz(text, path.suffix[1:])
    else:
        known = ", ".join((*_TEXT_SUFFIXES, *_DRAWN_SUFFIXES))
        raise DataError(f"{path}: no drawing ends so; need one of {known}")
    write_named(path, content)


def _by_graphviz(text: str, kind: str) -> bytes:
    try:
        graphviz = importlib.import_module("graphviz")  # optional: extra "plot"
    except ImportError:
        raise DataError(_INSTALL) from None
    try:
        content: bytes = graphviz.Source(text).pipe(format=kind)
    except graphviz.ExecutableNotFound:
        raise DataError(_INSTALL) from None
    return content


def _rescored(lattice: Lattice, loaded: LoadedModel) -> Lattice:
    """The best sequences, with the model's own weights."""
    weights = resolve(WeightOptions(), loaded.name, loaded.manifest.default_weights)
    request = LatticeRequest(lattice, arc_weights(weights), weights.lm_scales[loaded.name])
    return score_lattices([request], loaded)[0].rescored(_MOST_SEQUENCES)


def _facts(lattice: Lattice) -> dict[str, str]:
    words = len(lattice.words.values)
    attributes = sorted(
        [*lattice.arc_attributes, *(f"state {n}" for n in lattice.state_attributes)]
    )
    return {
        "utterance": lattice.utterance or "(no id)",
        "states": f"{lattice.num_states:,}",
        "arcs": f"{lattice.num_arcs:,}",
        "words on arcs": f"{words:,}" + ("" if lattice.symbols is not None else " (ids alone)"),
        "am": f"{lattice.am.min():.6g} to {lattice.am.max():.6g} nats",
        "graph": f"{lattice.graph.min():.6g} to {lattice.graph.max():.6g} nats",
        "attributes": ", ".join(attributes) or "none",
    }
