"""Lattices before the engine: found in what was sent, read, checked and tokenized.

Knows neither HTTP nor the queue. A lattice that cannot be rescored leaves its error.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantized_lm.artifact import LoadedModel
from quantized_lm.errors import DataError, InputError, LatticeError, TooManyArcsError
from quantized_lm.lattice import files
from quantized_lm.lattice.formats import LATTICE_FORMATS, LatticeFormat, ReadOptions, k2_json
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.spoken import ArcWeights
from quantized_lm.lattice_scoring import LatticeRequest, PreparedLattice, prepare_lattice
from service.errors import relocated
from service.lattice_schemas import MAX_LATTICES, LatticeInput, LatticeOptions
from service.schemas import MAX_SCORE, LmRequest

MAX_ARCS_FOLLOWED = 1_000_000  # by one search: each may take some hundred bytes


@dataclass(frozen=True)
class LatticeSource:
    """Where lattices are in a request.

    Attributes:
        content: a file's bytes, the same in base64, or parsed JSON of k2-json.
        format: what they are in.
        id, context, final, symbols: as `LatticeInput`.
        pointer: to the input; None where the body is the content, which may hold several lattices.
        content_pointer: to the content in the input.
    """

    content: bytes | str | dict[str, Any]
    format: LatticeFormat
    id: str | None = None
    context: tuple[str, ...] = ()
    final: bool = True
    symbols: object = None
    pointer: str | None = None
    content_pointer: str = ""


@dataclass(frozen=True)
class AskedLattices:
    """A request, whichever way it was sent."""

    choice: LmRequest
    options: LatticeOptions
    sources: Sequence[LatticeSource]


@dataclass(frozen=True)
class UnreadLattices:
    """A body as it came.

    Attributes:
        read: what says what it asks for; for a thread.
        size_bytes: its size.
        may_ask: whether it may ask for a deadline of its own.
    """

    read: Callable[[], AskedLattices]
    size_bytes: int
    may_ask: bool


@dataclass(frozen=True)
class LatticeRules:
    """What holds for every lattice of one request.

    Attributes:
        max_arcs: of one lattice. max_bytes: of what a packed one unpacks to.
    """

    model: LoadedModel
    arc_weights: ArcWeights
    lm_scale: float
    options: LatticeOptions
    max_arcs: int
    max_bytes: int


@dataclass(frozen=True)
class CheckedLattice:
    """One lattice ready for the engine, or what is wrong with it."""

    id: str | None
    format: LatticeFormat
    prepared: PreparedLattice | InputError


def source_of(position: int, sent: LatticeInput) -> LatticeSource:
    """One entry of a request's `lattices`."""
    content: bytes | str | dict[str, Any]
    if sent.lattice is not None:
        content, at = sent.lattice, "/lattice"
    elif sent.text is not None:
        content, at = sent.text.encode(), "/text"
    else:
        content, at = sent.base64 or "", "/base64"
    return LatticeSource(
        content,
        LATTICE_FORMATS[sent.format or "k2-json"],
        sent.id,
        tuple(sent.context.text),
        sent.final,
        sent.symbols,
        f"/lattices/{position}",
        at,
    )


def prepare_lattices(sources: Sequence[LatticeSource], rules: LatticeRules) -> list[CheckedLattice]:
    """Prepare every lattice; one that cannot be rescored leaves its error, with a pointer.

    Raises:
        InputError: the body is no lattice, or holds too many.
    """
    checked = []
    for source in sources:
        try:
            lattices = _read(source, rules)
        except InputError as error:
            if source.pointer is None:
                raise
            checked.append(CheckedLattice(source.id, source.format, _within(source, error)))
            continue
        checked += [_checked(lattice, source, rules) for lattice in lattices]
    return checked


def _decoded(text: str) -> bytes:
    """The bytes; lines may be broken, as many encoders do.

    Raises:
        LatticeError: it is no base64.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise LatticeError(f"is no base64 ({error}); need the file's bytes in it") from None


def _read(source: LatticeSource, rules: LatticeRules) -> list[Lattice]:
    options = ReadOptions(
        symbols=k2_json.parse_symbols(source.symbols), max_arcs=rules.max_arcs, keeps_empty=True
    )
    if isinstance(source.content, dict):
        lattices = k2_json.from_record(source.content, options)
    else:
        content = source.content
        data = _decoded(content) if isinstance(content, str) else content
        lattices = source.format.read(unpacked(data, rules.max_bytes), options)
    most = MAX_LATTICES if source.pointer is None else 1
    if len(lattices) > most:
        raise LatticeError(f"got {len(lattices)} lattices in one; need at most {most}")
    return lattices


def unpacked(content: bytes, max_bytes: int) -> bytes:
    """As `files.unpacked`, of a part of the body.

    Raises:
        LatticeError: it is damaged, or has more than `max_bytes` bytes.
    """
    try:
        return files.unpacked(content, limit=max_bytes, name="the body")
    except DataError as error:
        raise LatticeError(str(error)) from None


def _checked(lattice: Lattice, source: LatticeSource, rules: LatticeRules) -> CheckedLattice:
    name = source.id if source.id is not None else lattice.utterance or None
    try:
        _require_usable(lattice, rules)
        request = LatticeRequest(
            lattice=lattice,
            weights=rules.arc_weights,
            lm_scale=rules.lm_scale,
            limits=_limits(rules.options),
            silence=frozenset(rules.options.silence),
            context=source.context,
            final=source.final,
        )
        return CheckedLattice(name, source.format, prepare_lattice(request, rules.model))
    except InputError as error:
        return CheckedLattice(name, source.format, _within(source, error))


def _require_usable(lattice: Lattice, rules: LatticeRules) -> None:
    """Refuse what cannot be searched in bounds, added up, or said in a reply."""
    num_words = len(lattice.words.values)
    if num_words > rules.max_arcs:
        raise TooManyArcsError(
            f"the arcs have {num_words} words; need at most {rules.max_arcs}", pointer="/arcs"
        )
    for name, scores in (("am", lattice.am), ("graph", lattice.graph)):
        bad = np.isfinite(scores) & (np.abs(scores) > MAX_SCORE)
        if bad.any():
            at = int(np.argmax(bad))
            raise LatticeError(
                f"arc {at} has {name} score {scores[at]}; need at most {MAX_SCORE:g} from 0",
                pointer=f"/arcs/{at}",
            )
    try:
        "".join([lattice.utterance, *(lattice.symbols or {}).values()]).encode()
    except UnicodeEncodeError:
        raise LatticeError(
            "a word has half a surrogate; need Unicode", pointer="/symbols"
        ) from None


def _limits(options: LatticeOptions) -> SearchLimits:
    return SearchLimits(
        num_best=options.n_best,
        seeds=options.seeds,
        order=options.order,
        beam=options.beam,
        patience=options.patience,
        max_lm_steps=options.max_lm_steps,
        max_arcs=MAX_ARCS_FOLLOWED,
    )


def _told_where_symbols_go(error: InputError) -> InputError:
    """The error of a body that is a lattice, and so has no place for a table."""
    return type(error)(
        f"{error}: send application/json, with the lattice as `text` or `base64` of "
        "/lattices/0, its `format`, and `symbols` beside them",
        pointer=error.pointer,
    )


def _within(source: LatticeSource, error: InputError) -> InputError:
    """The error with its pointer into the request; text and bytes have no places to point to."""
    if source.pointer is None:
        return _told_where_symbols_go(error) if error.pointer == "/symbols" else error
    record = source.content if isinstance(source.content, dict) else {}
    if error.pointer == "/symbols" and "symbols" not in record:
        return relocated(error, source.pointer)
    within = source.pointer + source.content_pointer
    if isinstance(source.content, dict):
        return relocated(error, within)
    return type(error)(str(error), pointer=within)
