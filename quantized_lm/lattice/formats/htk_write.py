"""Lattices as HTK's Standard Lattice Format; words on nodes where they can be."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import names_of, require_some
from quantized_lm.lattice.formats.htk import NO_WORD, TIME
from quantized_lm.lattice.formats.numbers import texts_of
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.reshape import one_word_arcs, word_of_arcs

# HTK tells fields apart by their first letter, so that longer names would be taken for others. What
# else is missing are HTK's own: ends, words, times, and scores, which would be counted.
_LINK_FIELD = re.compile(r"[b-ikmo-qs-zA-DF-IK-RT-VX-Z]")
_NODE_FIELD = re.compile(r"[b-su-zA-HJKM-VX-Z]")
_NEEDS_QUOTES = re.compile(r"""[\s"'\\=]|^$""")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def write(lattices: Sequence[Lattice]) -> bytes:
    """Words on nodes if all links into each node have the same word, and else on links.

    Raises:
        LatticeError: there are several lattices, or it has ids and no words.
    """
    require_some(lattices, at_most_one=True, name="htk")
    lattice = one_word_arcs(lattices[0])
    words = _words(lattice)
    on_nodes = _on_nodes(lattice, words)
    node_fields = {} if on_nodes is None else {"W": [_field("W", word) for word in on_nodes]}
    for name, column in lattice.state_attributes.items():
        short = "t" if name == TIME else name
        if name == TIME or _holds(_NODE_FIELD, name, column):
            node_fields[short] = _attribute(short, column)
    numbers = zip(lattice.src.tolist(), lattice.dst.tolist(), strict=True)
    ends = [f"S={src} E={dst}" for src, dst in numbers]
    link_fields = {"W": [_field("W", word) for word in words]} if on_nodes is None else {}
    link_fields["a"] = [f" a={text}" for text in texts_of(lattice.am)]
    if lattice.graph.any():
        link_fields["l"] = [f" l={text}" for text in texts_of(lattice.graph)]
    for name, values in lattice.arc_attributes.items():
        if _holds(_LINK_FIELD, name, values) and not isinstance(values, Ragged):
            link_fields[name] = _attribute(name, values)
    lines = [*_header(lattice)]
    lines += [
        f"I={i}{''.join(column[i] for column in node_fields.values())}"
        for i in range(lattice.num_states)
    ]
    lines += [
        f"J={j} {end}{''.join(row)}"
        for j, (end, row) in enumerate(
            zip(ends, zip(*link_fields.values(), strict=True), strict=True)
        )
    ]
    return ("\n".join(lines) + "\n").encode()


def drops(lattices: Sequence[Lattice]) -> list[str]:
    """Arcs' and states' attributes whose names are HTK's own or longer than a letter, and lists."""

    def keeps(name: str, column: object) -> bool:
        return _holds(_LINK_FIELD, name, column)

    kept = {f"state {TIME}"}
    for lattice in lattices:
        columns = lattice.state_attributes.items()
        kept |= {f"state {name}" for name, c in columns if _holds(_NODE_FIELD, name, c)}
        kept |= {f"header {name}" for name in lattice.header}
    return [name for name in names_of(lattices, keeps=keeps) if name not in kept]


def _holds(pattern: re.Pattern[str], name: str, column: object) -> bool:
    is_row = isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in "iufU"
    return is_row and pattern.fullmatch(name) is not None


def _header(lattice: Lattice) -> list[str]:
    lines = ["VERSION=1.0"]
    if lattice.utterance:
        lines.append(_field("UTTERANCE", lattice.utterance).strip())
    lines += [
        _field(name, value).strip()
        for name, value in lattice.header.items()
        if re.fullmatch(r"[A-Za-z]\w*", name)
    ]
    lines += ["start=0", f"end={lattice.final}"]
    return [*lines, f"N={lattice.num_states} L={lattice.num_arcs}"]


def _words(lattice: Lattice) -> list[str]:
    """Of every arc; as HTK has it, !NULL where there is none."""
    if lattice.symbols is None:
        if len(lattice.words.values):
            raise LatticeError("the lattice has ids and HTK needs words; give a symbol table")
        return [NO_WORD] * lattice.num_arcs
    symbols = lattice.symbols
    ids = word_of_arcs(lattice).tolist()
    words = {symbol: symbols[symbol] for symbol in set(ids) if symbol}
    return [words.get(symbol, NO_WORD) for symbol in ids]


def _on_nodes(lattice: Lattice, words: Sequence[str]) -> list[str] | None:
    """The word of each node; None where links into one differ."""
    result = [NO_WORD] * lattice.num_states
    seen = [False] * lattice.num_states
    for node, word in zip(lattice.dst.tolist(), words, strict=True):
        if seen[node] and result[node] != word:
            return None
        result[node], seen[node] = word, True
    return result


def _attribute(name: str, column: Column) -> list[str]:
    if column.dtype.kind == "f":
        given = ~np.isnan(column.astype(np.float64))
        texts = texts_of(np.where(given, column.astype(np.float64), 0.0))
        pairs = zip(texts, given.tolist(), strict=True)
        return [f" {name}={text}" if is_given else "" for text, is_given in pairs]
    if column.dtype.kind == "U":
        return [_field(name, text or None) for text in column.tolist()]
    return [f" {name}={value}" for value in column.tolist()]


def _field(name: str, text: str | None) -> str:
    """A space and "name=text", quoted where it must be; nothing where there is no text."""
    if text is None:
        return ""
    if not _NEEDS_QUOTES.search(text):
        return f" {name}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    escaped = _CONTROL.sub(lambda match: f"\\{ord(match[0]):03o}", escaped)
    return f' {name}="{escaped}"'
