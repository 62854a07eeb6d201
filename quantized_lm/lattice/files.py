"""Files of lattices, plain or packed with gzip: read within limits, written in one piece."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from quantized_lm.errors import DataError, LatticeError
from quantized_lm.files import GZIP, write_named
from quantized_lm.lattice.formats import (
    LATTICE_FORMATS,
    LatticeFormat,
    ReadOptions,
    format_of_path,
)
from quantized_lm.lattice.lattice import Lattice

MAX_BYTES = 1 << 30
_CHUNK = 1 << 20
_GZIP_WINDOW = 31  # zlib's word for a gzip header


def read_lattices(
    path: Path, options: ReadOptions | None = None, *, source: LatticeFormat | None = None
) -> list[Lattice]:
    """Lattices of a file; one that has no id is named as the file.

    Args:
        source: its format; by default the one its name ends in.

    Raises:
        DataError: it cannot be read, or is larger than 1 GiB unpacked.
        LatticeError: a lattice is malformed; the message begins with the file.
    """
    one = source or format_of_path(path)
    try:
        lattices = one.read(read_bytes(path), options or ReadOptions())
    except LatticeError as error:
        raise LatticeError(f"{path}: {error}", pointer=error.pointer) from None
    stem = _stem(path, one)
    names = [stem] if len(lattices) == 1 else [f"{stem}-{index}" for index in range(len(lattices))]
    return [
        lattice if lattice.utterance else replace(lattice, utterance=name)
        for lattice, name in zip(lattices, names, strict=True)
    ]


def lattice_files(source: Path, *, given: LatticeFormat | None = None) -> list[Path]:
    """A file itself, or those of a folder that are lattices by their names, in order.

    Args:
        given: the format of all files whose names are usual for it.

    Raises:
        DataError: the folder has none.
    """
    if not source.is_dir():
        return [source]
    files = [path for path in sorted(source.iterdir()) if _is_lattice(path, given)]
    if not files and given is not None:
        raise DataError(f"{source}: has no file {' or '.join(given.patterns)} of {given.name}")
    if not files:
        raise DataError(
            f"{source}: has no file of a lattice by its name; others, such as Kaldi's lat.1.gz, "
            f"need --format (--from of `convert`), one of {', '.join(LATTICE_FORMATS)}"
        )
    return files


def names_lattice(path: Path) -> bool:
    """Whether a format is known by the name of the file."""
    try:
        format_of_path(path)
    except LatticeError:
        return False
    return True


def write_lattices(
    path: Path, lattices: Sequence[Lattice], *, target: LatticeFormat | None = None
) -> None:
    """All lattices in one file, which appears once it is complete; ".gz" packs it.

    Raises:
        DataError: the folder is not there or may not be written.
        LatticeError: the format cannot hold them.
    """
    content = (target or format_of_path(path)).write(lattices)
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    write_named(path, content)


def read_bytes(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file, unpacked if they begin as gzip does.

    Raises:
        DataError: it cannot be read, or has more than `limit` bytes.
    """
    try:
        with path.open("rb") as handle:
            content = handle.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > limit:
        raise DataError(f"{path}: has more than {limit} bytes")
    return unpacked(content, limit=limit, name=str(path))


def unpacked(content: bytes, *, limit: int, name: str) -> bytes:
    """The bytes themselves, or what they hold where they begin as gzip does.

    Raises:
        DataError: as `unpack`.
    """
    return unpack(content, limit=limit, name=name) if content.startswith(GZIP) else content


def unpack(content: bytes, *, limit: int = MAX_BYTES, name: str = "the lattice") -> bytes:
    """Gzip members, one behind the other; stops as soon as there is too much.

    Raises:
        DataError: it is damaged, or unpacks to more than `limit` bytes.
    """
    parts: list[bytes] = []
    size = 0
    try:
        while content:
            member = zlib.decompressobj(_GZIP_WINDOW)
            while not member.eof:
                part = member.decompress(content, _CHUNK)
                content = member.unconsumed_tail
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise DataError(f"{name}: unpacks to more than {limit} bytes")
                if not part and not content and not member.eof:
                    raise DataError(f"{name}: ends in the middle of a gzip file")
            content = member.unused_data
    except zlib.error as error:
        raise DataError(f"{name}: is no gzip file ({error})") from None
    return b"".join(parts)


def _is_lattice(path: Path, given: LatticeFormat | None) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    if given is None:
        return names_lattice(path)
    return any(fnmatch(path.name, pattern) for pattern in given.patterns)


def _stem(path: Path, one: LatticeFormat) -> str:
    name = path.name.removesuffix(".gz")
    for suffix in one.suffixes:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] or name
    return path.stem if "." in name else name
