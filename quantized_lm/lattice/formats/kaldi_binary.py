"""One lattice of a Kaldi binary archive: OpenFst's VectorFst of CompactLattice or Lattice arcs.

    header  int32 magic, string "vector", string arc type, int32 version, int32 flags,
            uint64 properties, int64 start, int64 states, int64 0
    state   final weight, int64 arcs, and of each arc int32 label, int32 word, weight, int32 state
    weight  float graph cost, float acoustic cost; of CompactLattice then int32 n and n int32 ids
    string  int32 length, bytes

All little-endian. Arc types: lattice4, compactlattice44, and lattice8, compactlattice84 of doubles.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.automaton import (
    About,
    Automaton,
    Finals,
    from_lattice,
    to_lattice,
)
from quantized_lm.lattice.formats.base import (
    Places,
    ReadOptions,
    empty_lattice,
    require_count,
)
from quantized_lm.lattice.formats.kaldi_text import ARCS_KEY, LATTICE, label_column
from quantized_lm.lattice.formats.numbers import require_single
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.ragged import ragged

_MAGIC = 2125659606
_SYMBOL_TABLES = 3  # flags of an automaton that carries its symbol tables
_PROPERTIES = 3  # expanded and mutable, as of every VectorFst; the rest is for the reader to find
_VERSION = 2
_COMPACT = "compactlattice44"
_ARC_TYPES: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "compactlattice44": ("f", True),
        "compactlattice84": ("d", True),
        "lattice4": ("f", False),
        "lattice8": ("d", False),
    }
)
_EMPTY = (0, -1)  # states and start
_TAIL = struct.Struct("<iiQqqq")
_INT = struct.Struct("<i")
_LONG = struct.Struct("<q")


@dataclass
class _Rows:
    """Arcs or final states as they are read."""

    ends: list[tuple[int, int]] = field(default_factory=list)
    labels: list[tuple[int, int]] = field(default_factory=list)
    costs: list[tuple[float, float]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)

    def alignment(self) -> Ragged:
        return ragged(self.lengths, np.frombuffer(b"".join(self.ids), "<i4").astype(np.int32))

    def scores(self, column: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """(E,) of graph or acoustic scores: costs, negated."""
        costs = np.array(self.costs, np.float64).reshape(-1, 2)
        return 0.0 - costs[:, column]


@dataclass(frozen=True)
class _Header:
    is_compact: bool
    weight: str  # "f" or "d"
    start: int
    num_states: int


def parse_lattice(
    data: bytes, position: int, utterance: str, options: ReadOptions
) -> tuple[Lattice, int]:
    """The lattice that begins at `position`, behind the mark of a binary, and where it ends.

    Raises:
        LatticeError: it is malformed.
    """
    prefix = f"utterance {utterance}: "
    arcs, finals = _Rows(), _Rows()
    try:
        header, position = _parse_header(data, position, prefix)
        if not header.num_states:
            return empty_lattice(utterance, options, prefix), position
        for state in range(header.num_states):
            position = _parse_state(data, position, state, header, (arcs, finals))
            if len(arcs.ends) > options.max_arcs:
                require_count(len(arcs.ends), options, prefix)
    except struct.error:
        raise _malformed(prefix, "it ends in the middle of a lattice") from None
    except _MalformedError as error:
        raise _malformed(prefix, str(error)) from None
    ends = np.array(arcs.ends, np.int64).reshape(-1, 2)
    labels = np.array(arcs.labels, np.int64).reshape(-1, 2)
    places = Places(prefix)
    bad = (labels < 0).any(axis=1) | (header.is_compact & (labels[:, 0] != labels[:, 1]))
    places.refuse(bad, "has labels {}; need 0 or more, and of CompactLattice one", labels)
    outside = (ends[:, 1] < 0) | (ends[:, 1] >= header.num_states)
    places.refuse(outside, f"ends at state {{}} of {header.num_states}", ends[:, 1])
    attributes: dict[str, Column | Ragged] = {"labels": labels[:, 0].astype(np.int32)}
    if header.is_compact:
        attributes = {"alignment": arcs.alignment()}
    source = Automaton(
        start=header.start,
        src=ends[:, 0],
        dst=ends[:, 1],
        words=labels[:, 1],
        am=arcs.scores(1),
        graph=arcs.scores(0),
        finals=Finals(
            np.array([state for state, _ in finals.ends], np.int64),
            finals.scores(1),
            finals.scores(0),
            finals.alignment(),
            Places(prefix, noun="final"),
        ),
        attributes=attributes,
        num_states=header.num_states,
    )
    marks = {} if header.is_compact else {ARCS_KEY: LATTICE}
    about = About(options, places, options.symbols, marks, utterance)
    return to_lattice(source, about), position


def lattice_bytes(lattice: Lattice) -> bytes:
    """One lattice, with the mark of a binary before it.

    Raises:
        LatticeError: a score is too large for float32.
    """
    is_compact = lattice.header.get(ARCS_KEY) != LATTICE
    source = from_lattice(lattice, keeps=("alignment",) if is_compact else ("labels",))
    labels = source.words if is_compact else label_column(source)
    weights = _weights(source.graph, source.am, source.attributes.get("alignment"), is_compact)
    pair = struct.Struct("<ii")
    arcs = [
        pair.pack(label, word) + weight + _INT.pack(dst)
        for label, word, weight, dst in zip(
            labels.tolist(), source.words.tolist(), weights, source.dst.tolist(), strict=True
        )
    ]
    finals = source.finals
    final_weights = dict(
        zip(
            finals.state.tolist(),
            _weights(finals.graph, finals.am, finals.alignment, is_compact),
            strict=True,
        )
    )
    infinite = np.array([-np.inf])
    (zero,) = _weights(infinite, infinite, None, is_compact)
    count = source.num_states or 0
    splits = np.searchsorted(source.src, np.arange(count + 1)).tolist()
    parts = [
        b"\0B",
        _INT.pack(_MAGIC),
        _string("vector"),
        _string(_COMPACT if is_compact else "lattice4"),
        _TAIL.pack(_VERSION, 0, _PROPERTIES, 0, count, 0),
    ]
    for state in range(count):
        parts.append(final_weights.get(state, zero) + _LONG.pack(splits[state + 1] - splits[state]))
        parts += arcs[splits[state] : splits[state + 1]]
    return b"".join(parts)


class _MalformedError(Exception):
    """What is wrong, in words."""


def _malformed(prefix: str, why: str) -> LatticeError:
    return LatticeError(f"{prefix}{why}; need OpenFst's binary form of a Kaldi lattice")


def _parse_header(data: bytes, position: int, prefix: str) -> tuple[_Header, int]:
    if _INT.unpack_from(data, position)[0] != _MAGIC:
        raise _MalformedError("it does not begin as a binary automaton does")
    kind, position = _parse_string(data, position + _INT.size)
    arc_type, position = _parse_string(data, position)
    if kind != "vector" or arc_type not in _ARC_TYPES:
        known = ", ".join(_ARC_TYPES)
        raise LatticeError(f"{prefix}it is a {kind!r} of {arc_type!r}; need a 'vector' of {known}")
    version, flags, _, start, states, _ = _TAIL.unpack_from(data, position)
    position += _TAIL.size
    if version != _VERSION or flags & _SYMBOL_TABLES:
        raise _MalformedError(
            f"it has version {version}, flags {flags}; need {_VERSION} and 0 or 4"
        )
    if (states, start) != _EMPTY and not 0 <= start < states <= len(data):
        raise _MalformedError(f"it has {states} states and starts at {start}")
    weight, is_compact = _ARC_TYPES[arc_type]
    return _Header(is_compact, weight, start, states), position


def _parse_string(data: bytes, position: int) -> tuple[str, int]:
    (length,) = _INT.unpack_from(data, position)
    position += _INT.size
    if not 0 <= length <= 64:
        raise _MalformedError(f"it has a type name of {length} bytes")
    return data[position : position + length].decode("latin-1"), position + length


def _parse_state(
    data: bytes, position: int, state: int, header: _Header, rows: tuple[_Rows, _Rows]
) -> int:
    """Read one state into rows of arcs and of final states; returns where it ends."""
    arcs, finals = rows
    zero = (float("inf"), float("inf"))
    if header.is_compact:
        costs, ids, position = _parse_weight(data, position, header)
    else:
        final = struct.Struct(f"<2{header.weight}")
        costs, ids = final.unpack_from(data, position), b""
        position += final.size
    if costs != zero:
        finals.ends.append((state, state))
        finals.costs.append(costs)
        finals.lengths.append(len(ids) // 4)
        finals.ids.append(ids)
    (count,) = _LONG.unpack_from(data, position)
    position += _LONG.size
    if not 0 <= count <= len(data) - position:
        raise _MalformedError(f"its state {state} has {count} arcs")
    return _parse_arcs(data, position, (state, count), header, arcs)


def _parse_arcs(
    data: bytes, position: int, state_count: tuple[int, int], header: _Header, arcs: _Rows
) -> int:
    state, count = state_count
    if not header.is_compact:
        arc = np.dtype([("i", "<i4"), ("o", "<i4"), ("w", f"<{header.weight}", 2), ("n", "<i4")])
        if count * arc.itemsize > len(data) - position:
            raise _MalformedError(f"its state {state} has {count} arcs, more than the file")
        table = np.frombuffer(data, arc, count, position)
        arcs.ends += [(state, end) for end in table["n"].tolist()]
        arcs.labels += zip(table["i"].tolist(), table["o"].tolist(), strict=True)
        arcs.costs += map(tuple, table["w"].tolist())
        return position + count * arc.itemsize
    pair = struct.Struct("<ii")
    for _ in range(count):
        labels = pair.unpack_from(data, position)
        costs, ids, position = _parse_weight(data, position + pair.size, header)
        arcs.labels.append(labels)
        arcs.costs.append(costs)
        arcs.lengths.append(len(ids) // 4)
        arcs.ids.append(ids)
        arcs.ends.append((state, _INT.unpack_from(data, position)[0]))
        position += _INT.size
    return position


def _parse_weight(
    data: bytes, position: int, header: _Header
) -> tuple[tuple[float, float], bytes, int]:
    """Costs and transition ids of CompactLattice, and where they end."""
    form = _COMPACT_WEIGHTS[header.weight]
    first, second, length = form.unpack_from(data, position)
    position += form.size
    if not 0 <= 4 * length <= len(data) - position:
        raise _MalformedError(f"it has an arc of {length} transition ids")
    return (first, second), data[position : position + 4 * length], position + 4 * length


_COMPACT_WEIGHTS = MappingProxyType({"f": struct.Struct("<ffi"), "d": struct.Struct("<ddi")})


def _weights(
    graph: np.ndarray[tuple[int], np.dtype[np.float64]],
    am: np.ndarray[tuple[int], np.dtype[np.float64]],
    alignment: Column | Ragged | None,
    is_compact: bool,  # noqa: FBT001
) -> list[bytes]:
    """Costs of float32, and of CompactLattice the transition ids."""
    costs = np.stack([require_single(0.0 - graph), require_single(0.0 - am)], axis=1)
    raw = np.ascontiguousarray(costs, "<f4").tobytes()
    pairs = [raw[at : at + 8] for at in range(0, len(raw), 8)]
    if not is_compact:
        return pairs
    if not isinstance(alignment, Ragged):
        return [pair + _INT.pack(0) for pair in pairs]
    ids = alignment.values.astype("<i4").tobytes()
    splits = alignment.splits.tolist()
    return [
        pair + _INT.pack(end - begin) + ids[4 * begin : 4 * end]
        for pair, begin, end in zip(pairs, splits[:-1], splits[1:], strict=True)
    ]


def _string(text: str) -> bytes:
    return _INT.pack(len(text)) + text.encode("ascii")
