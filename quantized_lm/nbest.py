"""N-best lists in JSON lines, plain or gzip, read to one frozen type. Knows nothing of models.

Two shapes of a line are read; which one it is, its own keys say:

    {"id", "hypotheses": [{"text", "am_score", "graph_score", "extra"}], "ref", "context", "final"}
    {"utt", "hyps": [{"text", "am", "lm", "total", ...}], "ref"}

The first is the service's request, with `ref` added. In the second, `FIRST_PASS` names the fields
that become `am_score` and `graph_score`; every other number is kept under its name in `extra`.
With "order" of either shape only the decoder's order counts: `am_score` is minus the natural
logarithm of the rank, for decoders that tell no scores.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, NoReturn, TextIO

from quantized_lm.components import escape
from quantized_lm.errors import DataError
from quantized_lm.files import naming_file, open_atomic, open_unpacked, reason

Json = Mapping[str, object]
ORDER = "order"
FIRST_PASS: Mapping[str, tuple[str | None, str | None]] = {
    "am": ("am", None),
    "total": ("total", None),
    "am+lm": ("am", "lm"),
    ORDER: (None, None),
}
DEFAULT_FIRST_PASS = "am"  # noqa: S105 - a pass of a decoder
# What reading lines of `open_read` may raise: no file, gzip that is cut or damaged, no UTF-8.
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError)
_HYPOTHESIS_KEYS = ("text", "am_score", "graph_score", "lm_score", "extra")


@dataclass(frozen=True)
class Hypothesis:
    """One candidate text with the decoder's scores, natural logs, higher is better.

    Attributes:
        text: as the decoder wrote it.
        am_score: acoustic score, or the whole first-pass score; None where not given.
        graph_score: the first pass's LM or graph part; None where not given.
        extra: other scores by name.
    """

    text: str
    am_score: float | None = None
    graph_score: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Utterance:
    """One n-best list in the decoder's order.

    Attributes:
        id: name of the utterance.
        hypotheses: at least one.
        ref: what was said; None where not known.
        context: earlier results, oldest first.
        final: whether the texts are complete, so that `</s>` is scored.
    """

    id: str
    hypotheses: tuple[Hypothesis, ...]
    ref: str | None = None
    context: tuple[str, ...] = ()
    final: bool = True


def read_utterances(path: Path, *, first_pass: str = DEFAULT_FIRST_PASS) -> Iterator[Utterance]:
    """Utterances of a file, one line at a time.

    Raises:
        DataError: a line is not one of the two shapes; the message names file, line and field.
    """
    if first_pass not in FIRST_PASS:
        known = ", ".join(FIRST_PASS)
        raise DataError(f"first pass is {first_pass!r}; need one of {known}")
    for where, record in read_records(path):
        yield record_to_utterance(record, where, first_pass=first_pass)


def read_records(path: Path) -> Iterator[tuple[str, Json]]:
    """(file:line, object) of every line that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object or holds NaN or infinity.
    """
    number = 0
    try:
        with open_read(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parse(line, f"{path}:{number}")
    except UNREADABLE as error:
        place = f" after line {number}" if number else ""
        raise DataError(
            f"{path}: cannot be read{place} ({reason(error)}); need JSON lines, plain or gzip"
        ) from None


@contextmanager
def open_read(path: Path) -> Iterator[TextIO]:
    """A text file as UTF-8, a byte order mark left out; unpacked if it begins as gzip does."""
    with (
        open_unpacked(path) as content,
        io.TextIOWrapper(content, encoding="utf-8-sig") as handle,
    ):
        yield handle


@contextmanager
def open_replace(path: Path) -> Iterator[TextIO]:
    """A text file, or its .gz, that takes the place of `path` only once all of it is written.

    The same lines give the same bytes. After an error the old file is as it was, and what was
    written beside it is gone. Links, devices and pipes: as `open_atomic`.

    Raises:
        DataError: the folder is not there or may not be written, or the disk is full.
    """
    with naming_file(path), open_atomic(path, tag=f".{os.getpid()}") as raw:
        if path.suffix == ".gz":
            with (
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
                _as_text(packed) as handle,
            ):
                yield handle
        else:
            with _as_text(raw) as handle:
                yield handle


@contextmanager
def _as_text(raw: BinaryIO | gzip.GzipFile) -> Iterator[TextIO]:
    """UTF-8 into `raw`, which stays open."""
    handle = io.TextIOWrapper(raw, encoding="utf-8")
    try:
        yield handle
    finally:
        handle.detach()


def record_to_utterance(record: Json, where: str, *, first_pass: str) -> Utterance:
    """One parsed line as an utterance; `where` begins each message.

    Raises:
        DataError: a field is missing, of the wrong type, or unknown in a hypothesis.
    """
    if "hypotheses" in record:
        utterance = _from_service(record, where)
    elif "hyps" in record:
        utterance = _from_fields(record, where, first_pass)
    else:
        refuse(where, "", f"keys are {', '.join(record) or 'none'}; need 'hypotheses' or 'hyps'")
    return _by_order(utterance) if first_pass == ORDER else utterance


def refuse(where: str, pointer: str, message: str) -> NoReturn:
    """Raise the `DataError` of one field: file:line, then the field's JSON pointer."""
    raise DataError(f"{where}: {pointer}: {message}" if pointer else f"{where}: {message}")


def text_field(record: Json, key: str, where: str, *, pointer: str = "") -> str:
    """A string that has to be there."""
    value = record.get(key)
    if not isinstance(value, str):
        refuse(where, f"{pointer}/{key}", f"is {value!r}; need a string")
    return value


def number_field(value: object, where: str, pointer: str) -> float:
    """A finite number (a boolean is none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(where, pointer, f"is {value!r}; need a number")
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if not math.isfinite(number):  # JSON's 1e999
        refuse(
            where, pointer, "is not finite as a float64; need a number between -1.7e308 and 1.7e308"
        )
    return number


def list_field(record: Json, key: str, where: str, *, pointer: str = "") -> list[Json]:
    """A list of objects, at least one."""
    values = record.get(key)
    if not isinstance(values, list) or not values:
        refuse(where, f"{pointer}/{key}", "is no list of objects, or empty; need at least one")
    for position, value in enumerate(values):
        if not isinstance(value, dict):
            refuse(where, f"{pointer}/{key}/{position}", f"is {value!r}; need an object")
    return values


def numbers_field(record: Json, key: str, where: str, pointer: str) -> dict[str, float]:
    """An object of finite numbers; {} where it is missing."""
    values = record.get(key, {})
    if not isinstance(values, dict):
        refuse(where, f"{pointer}/{key}", f"is {values!r}; need an object of numbers")
    return {
        name: number_field(value, where, f"{pointer}/{key}/{escape(name)}")
        for name, value in values.items()
    }


def _parse(line: str, where: str) -> Json:
    def refuse_constant(constant: str) -> NoReturn:
        refuse(where, "", f"holds {constant}; need finite numbers")

    try:
        record = json.loads(line, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        refuse(where, "", f"no JSON ({error.msg} at column {error.colno}); need one object a line")
    except (ValueError, RecursionError) as error:  # more digits or nesting than Python reads
        refuse(where, "", f"no JSON ({error}); need one object a line")
    if not isinstance(record, dict):
        refuse(where, "", f"is a JSON {type(record).__name__}; need an object")
    if "\\u" in line:  # nothing else can make one
        _require_unicode(record, where, "")
    return record


def _require_unicode(value: object, where: str, pointer: str) -> None:
    """Refuse half a surrogate, which UTF-8 cannot hold, in any text or name."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            refuse(where, pointer, f"is {value!a}, which has half a surrogate; need Unicode")
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _require_unicode(item, where, f"{pointer}/{position}")
    elif isinstance(value, dict):
        for name, item in value.items():
            _require_unicode(name, where, pointer)
            _require_unicode(item, where, f"{pointer}/{escape(name)}")


def _from_service(record: Json, where: str) -> Utterance:
    hypotheses = []
    for position, entry in enumerate(list_field(record, "hypotheses", where)):
        pointer = f"/hypotheses/{position}"
        for key in entry:
            if key not in _HYPOTHESIS_KEYS:
                known = ", ".join(_HYPOTHESIS_KEYS)
                refuse(where, f"{pointer}/{escape(key)}", f"is not known; need one of {known}")
        if entry.get("graph_score") is not None and entry.get("lm_score") is not None:
            refuse(where, f"{pointer}/lm_score", "is another name of graph_score; give one of them")
        graph_key = "lm_score" if entry.get("lm_score") is not None else "graph_score"
        hypotheses.append(
            Hypothesis(
                text=text_field(entry, "text", where, pointer=pointer),
                am_score=_optional(entry, "am_score", where, pointer),
                graph_score=_optional(entry, graph_key, where, pointer),
                extra=numbers_field(entry, "extra", where, pointer),
            )
        )
    final = record.get("final", True)
    if not isinstance(final, bool):
        refuse(where, "/final", f"is {final!r}; need true or false")
    return Utterance(
        id=text_field(record, "id", where),
        hypotheses=tuple(hypotheses),
        ref=reference_field(record, where),
        context=_context(record, where),
        final=final,
    )


def _from_fields(record: Json, where: str, first_pass: str) -> Utterance:
    am_key, graph_key = FIRST_PASS[first_pass]
    hypotheses = []
    for position, entry in enumerate(list_field(record, "hyps", where)):
        pointer = f"/hyps/{position}"
        used = {"text", am_key, graph_key}
        hypotheses.append(
            Hypothesis(
                text=text_field(entry, "text", where, pointer=pointer),
                am_score=_optional(entry, am_key, where, pointer) if am_key else None,
                graph_score=_optional(entry, graph_key, where, pointer) if graph_key else None,
                extra={
                    key: number_field(value, where, f"{pointer}/{escape(key)}")
                    for key, value in entry.items()
                    if key not in used
                },
            )
        )
    return Utterance(
        id=text_field(record, "utt", where),
        hypotheses=tuple(hypotheses),
        ref=reference_field(record, where),
    )


def _by_order(utterance: Utterance) -> Utterance:
    ranked = tuple(
        replace(hypothesis, am_score=-math.log(rank), graph_score=None)
        for rank, hypothesis in enumerate(utterance.hypotheses, start=1)
    )
    return replace(utterance, hypotheses=ranked)


def reference_field(record: Json, where: str) -> str | None:
    """The reference of an utterance, if it has one."""
    return text_field(record, "ref", where) if record.get("ref") is not None else None


def _optional(entry: Json, key: str, where: str, pointer: str) -> float | None:
    value = entry.get(key)
    return None if value is None else number_field(value, where, f"{pointer}/{key}")


def _context(record: Json, where: str) -> tuple[str, ...]:
    context = record.get("context")
    if context is None:
        return ()
    texts = context.get("text", []) if isinstance(context, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        refuse(where, "/context", 'is not of the form {"text": ["earlier result", ...]}')
    return tuple(texts)
