"""Frozen dataclasses out of parsed JSON or YAML, refusing what does not belong; and as files."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from quantized_lm.errors import DataError, SecondpassError
from quantized_lm.files import reason, write_atomic

T = TypeVar("T")


def build(cls: type[T], value: object, *, where: str, error: type[SecondpassError]) -> T:
    """Make a dataclass out of parsed YAML or JSON, checking names and types all the way down.

    Args:
        cls: the dataclass; nested dataclasses, tuples, dicts, Any and "or None" are understood.
        value: what the parser returned.
        where: names the document in messages.
        error: what to raise.

    Raises:
        SecondpassError: of class `error`; names the field by its path and says what it should be.
            What a dataclass refuses itself is raised so, too.
    """
    if not isinstance(value, dict):
        raise error(f"{where}: got {value!r}; need a mapping of fields")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f"did you mean {near[0]!r}? known" if near else "known"
        raise error(f"{where}: unknown field {unknown[0]!r}; {hint}: {', '.join(hints)}")
    required = {
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(value))
    if missing:
        raise error(f"{where}: field {missing[0]!r} is missing")
    fields = {
        name: _convert(hints[name], item, where=f"{where}: {name}", error=error)
        for name, item in value.items()
    }
    try:
        return cls(**fields)
    except error:
        raise
    except SecondpassError as fault:
        raise error(f"{where}: {fault}") from None


def write_record(path: Path, record: Any) -> None:
    """A dataclass as JSON, in one piece; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(dataclasses.asdict(record), indent=1) + "\n"
    write_atomic(path, content.encode())


def read_record(cls: type[T], path: Path, *, what: str, remedy: str = "") -> T:
    """The reverse.

    Args:
        what: names what is missing if it cannot be read. remedy: ends that message.

    Raises:
        DataError: no such file, no JSON, or it holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no {what} can be read ({reason(error)}){remedy}") from None
    return build(cls, value, where=str(path), error=DataError)


def without_defaults(value: object) -> Any:
    """A dataclass as nested mappings of the fields that differ from their defaults.

    So a field that is added later, with a default that means what was before, changes nothing.
    """
    if not dataclasses.is_dataclass(value):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if item != default:
            changed[field.name] = without_defaults(item)
    return changed


def content_key(*values: object) -> str:
    """Sha256 of dataclasses, without what equals a default, and of other JSON values."""
    parts = [without_defaults(value) for value in values]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _convert(hint: Any, item: object, *, where: str, error: type[SecondpassError]) -> object:
    """Check one value against its type hint; ints pass as floats, lists become tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if types.NoneType in args:
        (only,) = (arg for arg in args if arg is not types.NoneType)
        return None if item is None else _convert(only, item, where=where, error=error)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[object]", hint), item, where=where, error=error)
    if origin is tuple and isinstance(item, list):
        return tuple(_convert(args[0], part, where=where, error=error) for part in item)
    if origin is dict and isinstance(item, dict):
        return {
            key: _convert(args[1], part, where=f"{where}.{key}", error=error)
            for key, part in item.items()
        }
    if hint is float and isinstance(item, int) and not isinstance(item, bool):
        return _float(item, where=where, error=error)
    if hint is Any or (origin is None and type(item) is hint):
        return item
    raise error(f"{where}: got {item!r}; need {getattr(hint, '__name__', hint)}")


def _float(item: int, *, where: str, error: type[SecondpassError]) -> float:
    try:
        return float(item)
    except OverflowError:
        raise error(f"{where}: got an integer of {item.bit_length()} bits; need float") from None
