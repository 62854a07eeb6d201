"""HTK's Standard Lattice Format, with words on nodes or on links.

A link has the word of the node that it enters; !NULL and <eps> are none. A word on the start node,
which no link enters, is on an arc before it. With dir=b it has the word of the node that it leaves,
whose time is where the word begins; a word on the end node is on an arc behind it. Times count in
units of `tscale` seconds.

Scores are logs, of `base` where the file gives one. am is `a` of the link, or of the node with its
word; graph is l + r * prscale / lmscale, with `n` for an `l` that is not there: times lmscale it is
what HTK counts of both. acscale, lmscale and wdpenalty are not applied, as they are weights.
Source: the HTK Book, chapter "HTK Standard Lattice Format".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.automaton import About, Automaton, plain_finals, to_lattice
from quantized_lm.lattice.formats.base import Places, ReadOptions, require_count
from quantized_lm.lattice.formats.labels import Words, words_to_ids
from quantized_lm.lattice.formats.numbers import parse_floats, parse_ints
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.symbols import EPSILON

NO_WORD = "!NULL"
TIME = "time_s"
_LONG_NAMES = {
    "START": "S",
    "END": "E",
    "WORD": "W",
    "NODES": "N",
    "LINKS": "L",
    "time": "t",
    "var": "v",
    "div": "d",
    "acoustic": "a",
    "language": "l",
}
_LONG_HEADER_NAMES = {"V": "VERSION", "U": "UTTERANCE"}  # which other lines do not have
_OWN_HEADER = ("N", "L", "start", "end", "base", "tscale", "dir", "UTTERANCE", "VERSION")
_OWN_LINK = ("J", "S", "E", "W", "a", "l", "n", "r")
_FIELD = re.compile(
    r"""([^\s="']+)=("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)(?:\s+|\Z)""", re.DOTALL
)
_ESCAPE = re.compile(r"((?:\\[0-3][0-7]{2})+)|\\(.)", re.DOTALL)  # bytes, or a character

Fields = dict[str, str]


@dataclass
class _Lines:
    """Fields of the three kinds of lines."""

    header: Fields = field(default_factory=dict)
    nodes: list[Fields] = field(default_factory=list)
    links: list[Fields] = field(default_factory=list)
    node_lines: list[int] = field(default_factory=list)
    link_lines: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Nodes:
    """Nodes by number; `fields` of each."""

    fields: list[Fields]
    places: Places


def read(data: bytes, options: ReadOptions) -> list[Lattice]:
    """One lattice.

    Raises:
        LatticeError: it is malformed, has a sublattice, or a node off every path.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        content, at = error.object, error.start  # without a byte order mark
        line = content.count(b"\n", 0, at) + 1
        raise LatticeError(
            f"line {line}: has byte 0x{content[at]:02x}, which is not UTF-8; convert the "
            "file, such as with iconv -f latin1 -t utf-8"
        ) from None
    parsed = _split(lines, options)
    header = parsed.header
    nodes = _nodes(parsed)
    count = len(nodes.fields)
    links, places = parsed.links, Places(lines=parsed.link_lines)
    src = _ends(links, "S", count, places)
    dst = _ends(links, "E", count, places)
    start = _end_node(header, "start", dst, count)
    final = _end_node(header, "end", src, count)
    is_forward = _is_forward(header)
    outer = start if is_forward else final  # whose word no link has
    if _says_something(nodes.fields[outer]):
        nodes, links, places = _with_node_beside(outer, nodes, links, places)
        before, after = (count, start) if is_forward else (final, count)
        src, dst = np.append(src, before), np.append(dst, after)
        start, final = (count, final) if is_forward else (start, count)
        count += 1
    at_word = [nodes.fields[node] for node in (dst if is_forward else src).tolist()]
    words = _words(links, at_word, options, places)
    base = _base(header)
    acoustic = [link.get("a", node.get("a")) for link, node in zip(links, at_word, strict=True)]
    source = Automaton(
        start=start,
        src=src,
        dst=dst,
        words=words.ids,
        am=_scores(acoustic, "a", base, places),
        graph=_graph(links, header, base, places),
        finals=plain_finals(np.array([final])),
        attributes=_columns(links, _OWN_LINK),
        state_attributes=_node_columns(nodes, header),
        num_states=count,
    )
    kept = {name: value for name, value in header.items() if name not in _OWN_HEADER}
    about = About(options, places, words.symbols, kept, header.get("UTTERANCE", ""))
    return [to_lattice(source, about)]


def _split(lines: Sequence[str], options: ReadOptions) -> _Lines:
    parsed = _Lines()
    for number, line in enumerate(lines, start=1):
        first = line.lstrip()[:2]
        if first == "J=":
            parsed.links.append(_fields(line, number))
            parsed.link_lines.append(number)
        elif first == "I=":
            parsed.nodes.append(_fields(line, number))
            parsed.node_lines.append(number)
        elif first and first[0] not in "#.":
            fields = _fields(line, number).items()
            parsed.header.update({_LONG_HEADER_NAMES.get(name, name): v for name, v in fields})
        if max(len(parsed.links), len(parsed.nodes) - 1) > options.max_arcs:
            break
    if any("L" in fields for fields in parsed.nodes) or "SUBLAT" in parsed.header:
        raise LatticeError("the lattice has sublattices; expand them first")
    declared = parsed.header.get("L", "")
    count = int(declared) if _is_small(declared) else len(parsed.links)
    require_count(max(count, len(parsed.links), len(parsed.nodes) - 1), options)
    for name, found in (("N", len(parsed.nodes)), ("L", len(parsed.links))):
        value = parsed.header.get(name)
        if value != str(found) and not (value and _is_small(value) and int(value) == found):
            raise LatticeError(f"the header has {name}={value}, but there are {found} such lines")
    return parsed


def _fields(line: str, number: int) -> Fields:
    """name=value pairs of a line; values may be quoted and have escapes."""
    if '"' in line or "'" in line or "\\" in line:
        pairs, rest = _quoted_fields(line.strip())
    else:
        split = [part.partition("=") for part in line.split()]
        pairs = [(name, value) for name, _, value in split]
        rest = next((name for name, sign, _ in split if not sign or not name), "")
    if rest:
        raise LatticeError(f"line {number}: has {rest[:40]!r}; need name=value")
    return {_LONG_NAMES.get(name, name): value for name, value in pairs}


def _quoted_fields(line: str) -> tuple[list[tuple[str, str]], str]:
    """Pairs of a line with quotes or escapes, and what is left where there is no pair."""
    pairs = []
    position = 0
    while position < len(line):  # one match after the other: a search could take the square of n
        match = _FIELD.match(line, position)
        if match is None:
            break
        pairs.append((match[1], _unquoted(match[2])))
        position = match.end()
    return pairs, line[position:]


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
        value = value[1:-1]
    if "\\" not in value:
        return value
    return _ESCAPE.sub(lambda match: _of_bytes(match[1]) if match[1] else match[2], value)


def _of_bytes(escapes: str) -> str:
    """The text of some bytes in octal: of UTF-8, or of Latin-1 where they are none."""
    values = bytes(int(digits, 8) for digits in escapes[1:].split("\\"))
    try:
        return values.decode("utf-8")
    except UnicodeDecodeError:
        return values.decode("latin-1")


def _nodes(parsed: _Lines) -> _Nodes:
    """Nodes in the order of their numbers, which are 0 to N - 1 in any order."""
    places = Places(lines=parsed.node_lines, noun="node")
    texts = [fields["I"] for fields in parsed.nodes]
    count = len(texts)
    if not count:
        raise LatticeError("the lattice has no nodes", pointer="/nodes")
    numbers = parse_ints(texts, places, "number", most=count - 1)
    again = ~np.isin(np.arange(count), np.unique(numbers, return_index=True)[1])
    places.refuse(again, "has number {}, as another has", numbers)
    by_number = np.argsort(numbers)
    return _Nodes([parsed.nodes[at] for at in by_number.tolist()], places.at(by_number))


def _ends(links: Sequence[Fields], name: str, count: int, places: Places) -> NDArray[np.int64]:
    texts = [fields.get(name, "") for fields in links]
    return parse_ints(texts, places, f"{name}=", most=count - 1)


def _end_node(header: Fields, name: str, other: NDArray[np.int64], count: int) -> int:
    """The node that the header names, or else the only one that no link enters, or leaves."""
    given = header.get(name)
    if given is not None:
        if not _is_small(given) or int(given) >= count:
            raise LatticeError(f"{name} is {given[:40]!r}; need a node of {count}")
        return int(given)
    free = np.setdiff1d(np.arange(count), other)
    if len(free) != 1:
        verb = "enters" if name == "start" else "leaves"
        raise LatticeError(
            f"there are {len(free)} nodes that no link {verb}; need one, or {name}= in the header",
            pointer="/nodes",
        )
    return int(free[0])


def _is_forward(header: Fields) -> bool:
    direction = header.get("dir", "f")
    if direction not in ("f", "b"):
        raise LatticeError(f"dir is {direction[:40]!r}; need f or b", pointer="/dir")
    return direction == "f"


def _word(fields: Fields) -> str | None:
    word = fields.get("W")
    return None if word in (NO_WORD, EPSILON) else word


def _says_something(fields: Fields) -> bool:
    return _word(fields) is not None or "a" in fields


def _with_node_beside(
    outer: int, nodes: _Nodes, links: list[Fields], places: Places
) -> tuple[_Nodes, list[Fields], Places]:
    """One more node, at the time of the start or end, and a link between them for its word."""
    own = nodes.fields[outer].items()
    fields = {name: value for name, value in own if name not in ("W", "a")}
    lines = [*(places.lines or ()), (nodes.places.lines or ())[outer]]
    return (
        replace(nodes, fields=[*nodes.fields, fields]),
        [*links, {}],
        replace(places, lines=lines),
    )


def _words(
    links: Sequence[Fields], at_word: Sequence[Fields], options: ReadOptions, places: Places
) -> Words:
    """Of each link.

    Args:
        at_word: the node of each link that may have its word.
    """
    words = []
    for at, (fields, node) in enumerate(zip(links, at_word, strict=True)):
        word, below = _word(fields), _word(node)
        if word is not None and below is not None and below != word:
            raise places.error(
                at, f"has word {word!r}, and its node has {below!r}; need one of them"
            )
        words.append(below if word is None else word)
    return words_to_ids(words, options, places)


def _graph(
    links: Sequence[Fields], header: Fields, base: float, places: Places
) -> NDArray[np.float64]:
    """(E,) natural logs of the LM and of the words' pronunciations."""
    language = [fields.get("l", fields.get("n")) for fields in links]
    graph = _scores(language, "l", base, places)
    spoken = _scores([fields.get("r") for fields in links], "r", base, places)
    if not spoken.any():
        return graph
    scale = _number(header, "prscale") / (_number(header, "lmscale") or 1.0)
    return graph + scale * spoken if scale else graph


def _number(header: Fields, name: str) -> float:
    """A number of the header; 1 where it is not there."""
    text = header.get(name, "1")
    number = float(parse_floats([text], Places(noun="header"), name)[0])
    if not math.isfinite(number):
        raise LatticeError(f"{name} is {text[:40]}; need a number", pointer=f"/{name}")
    return number


def _scores(
    texts: Sequence[str | None], name: str, base: float, places: Places
) -> NDArray[np.float64]:
    """(E,) natural logs; 0 where a link has none."""
    none = "0" if base else "1"
    given = [none if text is None else text for text in texts]
    values = parse_floats(given, places, f"{name}=")
    if base == math.e:
        return values
    if base:
        return values * math.log(base)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: NDArray[np.float64] = np.log(values)
    return logs


def _base(header: Fields) -> float:
    """Base of the logs; 0 where scores are no logs."""
    text = header.get("base")
    if text is None:
        return math.e
    places = Places(noun="header")
    base = float(parse_floats([text], places, "base")[0])
    if not (base == 0 or (base > 1 and math.isfinite(base))):
        raise LatticeError(f"base is {text[:40]}; need a number above 1, or 0", pointer="/base")
    return math.e if abs(base - math.e) < 1e-4 else base  # files say 2.71828


def _node_columns(nodes: _Nodes, header: Fields) -> dict[str, Column]:
    columns = _columns(nodes.fields, ("I", "W", "a"))
    if "t" in columns:
        columns["t"] = _times(nodes, _number(header, "tscale"))
    result = {TIME if name == "t" else name: column for name, column in columns.items()}
    return {name: column for name, column in result.items() if not isinstance(column, Ragged)}


def _times(nodes: _Nodes, unit_s: float) -> NDArray[np.float64]:
    """(S,) seconds; NaN where a node has none."""
    if unit_s <= 0:
        raise LatticeError(f"tscale is {unit_s:g}; need a number above 0", pointer="/tscale")
    texts = [fields.get("t", "nan") for fields in nodes.fields]
    parse_floats(texts, nodes.places, "t=")  # which names the first that is no number
    return unit_s * np.array(list(map(float, texts)))


def _columns(rows: Sequence[Fields], without: tuple[str, ...]) -> dict[str, Column | Ragged]:
    """Every other field: int32 or float64 with NaN for none, or texts with "" for none."""
    names = dict.fromkeys(name for fields in rows for name in fields)
    return {
        name: _column([fields.get(name, "") for fields in rows])
        for name in names
        if name not in without
    }


def _column(texts: list[str]) -> Column:
    if all(text.isascii() and text.isdigit() and len(text) < 10 for text in texts):
        return np.array(list(map(int, texts)), np.int32)
    try:
        numbers = np.array([float(text) if text else math.nan for text in texts])
    except ValueError:
        return np.array(texts)
    given = np.array([bool(text) for text in texts])
    return numbers if bool(np.isfinite(numbers[given]).all()) else np.array(texts)


def _is_small(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
