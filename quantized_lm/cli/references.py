"""What was said, by utterance id, for what has no references of its own: lattices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantized_lm.cli.spool import readable_twice
from quantized_lm.errors import DataError
from quantized_lm.files import reason
from quantized_lm.nbest import UNREADABLE, open_read, read_records, reference_field, text_field


def read_references(path: Path) -> dict[str, str]:
    """References out of n-best lists in JSON lines, or lines "id text", as Kaldi's `text` has them.

    Lists may be in either shape, or rescored; those without `ref` are passed over.

    Raises:
        DataError: the file cannot be read, a line is of another form, or an id is there twice.
    """
    references: dict[str, str] = {}
    with readable_twice(path) as twice:
        for where, utterance, reference in _lists(twice) if _is_json(twice) else _lines(twice):
            if utterance in references:
                raise DataError(
                    f"{where}: utterance {utterance!r} is there a second time; need one"
                )
            references[utterance] = reference
    return references


def _is_json(path: Path) -> bool:
    """Whether the first line that is not blank begins an object."""
    first = next((line for _, line in _stripped(path)), "")
    return first.startswith("{")


def _lists(path: Path) -> Iterator[tuple[str, str, str]]:
    for where, record in read_records(path):
        utterance = text_field(record, "utt" if "hyps" in record else "id", where)
        reference = reference_field(record, where)
        if reference is not None:
            yield where, utterance, reference


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in _stripped(path):
        utterance, *text = line.split(maxsplit=1)
        yield f"{path}:{number}", utterance, "".join(text)


def _stripped(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open_read(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.strip()
    except UNREADABLE as error:
        raise DataError(
            f"{path}: no references can be read ({reason(error)}); need n-best lists or lines "
            '"id text"'
        ) from None
