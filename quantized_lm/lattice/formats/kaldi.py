"""Kaldi archives: lattices by utterance id, text and binary alike."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats import kaldi_binary, kaldi_text
from quantized_lm.lattice.formats.base import (
    ReadOptions,
    empty_lattice,
    names_of,
    require_some,
)
from quantized_lm.lattice.formats.kaldi_text import ARCS_KEY, LATTICE, require_words
from quantized_lm.lattice.lattice import Lattice, Ragged

_BINARY = b"\0B"
_KEY = re.compile(rb"\s*(\S+)([ \t]*)")
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n|\Z")


def read_archive(data: bytes, options: ReadOptions) -> list[Lattice]:
    """Lattices of an archive; each may be text or binary, as Kaldi has it.

    Raises:
        LatticeError: one is malformed, or there is none.
    """
    lattices = []
    position, line = 0, 1
    while position < len(data):
        match = _KEY.match(data, position)
        if data.startswith(_BINARY, position):  # a file of one lattice has no id
            utterance, start = "", position
        elif match is None:
            break
        else:
            utterance, start = _text(match[1], line), match.end()
            if start == len(data):
                raise LatticeError(
                    f"line {line}: ends with {utterance[:40]!r}; need a lattice behind an "
                    "utterance id, or a line's end for none"
                )
        if data.startswith(_BINARY, start):
            lattice, end = kaldi_binary.parse_lattice(
                data, start + len(_BINARY), utterance, options
            )
        else:
            end_match = _BLANK_LINE.search(data, start)
            end = end_match.end() if end_match else len(data)
            first = line + data.count(b"\n", position, start)
            lines = _text(data[start:end], first).split("\n")
            if lines[0].strip():
                raise LatticeError(
                    f"line {first}: is {lines[0][:40]!r} behind {utterance[:40]!r}; need an "
                    "utterance id alone, and the arcs below it"
                )
            lattice = (
                kaldi_text.parse_lattice(lines, utterance, options, first)
                if any(map(str.strip, lines))
                else empty_lattice(utterance, options, f"utterance {utterance}: ")
            )
        lattices.append(lattice)
        line += data.count(b"\n", position, end)
        position = end
    if not lattices:
        raise LatticeError("the archive is empty; need at least one lattice")
    return lattices


def write_text(lattices: Sequence[Lattice]) -> bytes:
    """Lattices as Kaldi prints them; costs with as many digits as they have.

    Raises:
        LatticeError: an utterance id is empty or has a space in it.
    """
    require_some(lattices, at_most_one=False, name="kaldi-text")
    parts = [
        f"{require_words(one.utterance)} \n{kaldi_text.lattice_text(one)}\n" for one in lattices
    ]
    return "".join(parts).encode()


def write_binary(lattices: Sequence[Lattice]) -> bytes:
    """Lattices as Kaldi's tools read and write them, costs as float32.

    Raises:
        LatticeError: an utterance id is empty or has a space in it, or a score is too large.
    """
    require_some(lattices, at_most_one=False, name="kaldi-binary")
    parts = []
    for one in lattices:
        parts += [f"{require_words(one.utterance)} ".encode(), kaldi_binary.lattice_bytes(one)]
    return b"".join(parts)


def drops(lattices: Sequence[Lattice]) -> list[str]:
    """All but words, scores and transition ids; of non-compact lattices the labels are kept."""
    names: set[str] = set()
    for lattice in lattices:
        is_compact = lattice.header.get(ARCS_KEY) != LATTICE

        def keeps(name: str, column: object, *, is_compact: bool = is_compact) -> bool:
            if is_compact:
                return name == "alignment" and isinstance(column, Ragged)
            return name == "labels" and not isinstance(column, Ragged)

        names |= set(names_of([lattice], keeps=keeps))
        names |= {"symbols"} if lattice.symbols else set()
    return sorted(names)


def _text(data: bytes, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise LatticeError(f"line {line}: is no UTF-8 text and no binary lattice") from None
