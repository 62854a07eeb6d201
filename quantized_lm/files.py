"""Read files whether packed or not, and write them so that a reader never sees half of one."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from quantized_lm.errors import DataError

_MOST_LINKS = 40  # one behind the other, as for the system
GZIP = b"\x1f\x8b"  # what a packed file begins with, whatever it is called


def reason(error: Exception) -> str:
    """Why a file cannot be read or written, without its name, which the message has already."""
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def open_unpacked(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    """What a file holds, unpacked if it begins as gzip does; opened once, as a pipe has to be."""
    with path.open("rb") as raw:
        yield gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP else raw


@contextmanager
def open_atomic(path: Path, *, tag: str = "") -> Iterator[BinaryIO]:
    """Written beside, flushed to disk, then renamed: either the old file or the whole new one.

    After an error what was written beside it is gone. A symbolic link stays, and what it points to
    is replaced. A device or pipe cannot be replaced: it is written to directly, and so is what this
    process has open (/dev/stdout, /dev/fd/3), behind what was written there before.

    Args:
        tag: of the name beside, where several processes may write the same file.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = _descriptor(path)
    if descriptor is not None:
        with os.fdopen(os.dup(descriptor), "wb") as handle:
            yield handle
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as handle:
            yield handle
        return
    real = Path(os.path.realpath(path))
    beside = real.with_name(f".{real.name}{tag}.partial")
    try:
        with beside.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(real)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say whose write failed
        raise
    finally:
        beside.unlink(missing_ok=True)


def _descriptor(path: Path) -> int | None:
    """The number under which this process has a file open, where that is what a path leads to.

    A file behind it must not be opened again: that would cut it, or write at another place in it.
    """
    folders = {os.path.realpath("/proc/self/fd"), "/dev/fd"}
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in folders and path.name.isdecimal() and os.path.lexists(path):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder) / path.readlink()
    return None


def write_atomic(path: Path, content: bytes) -> None:
    """All of a file, as `open_atomic` writes it."""
    with open_atomic(path) as handle:
        handle.write(content)


def write_named(path: Path, content: bytes) -> None:
    """`write_atomic` of a file that a user has named.

    Raises:
        DataError: the folder is not there or may not be written, or the disk is full.
    """
    with naming_file(path):
        write_atomic(path, content)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Say which file a fault of writing is about.

    Raises:
        DataError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A folder of this call alone, whose files can be renamed into the folder `target`.

    It is in `target` where that is there, as this may be on another disk than what is around it;
    else beside it. It is gone in the end. What another process left, or writes, is never touched.

    Raises:
        OSError: it cannot be made.
    """
    home = target if target.is_dir() else target.parent
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=home))
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_file_name(path: Path, *sources: Path | None) -> None:
    """Pass if a file can have this name, so that a fault is known before the work for it.

    Args:
        sources: what is read, and would be lost; None where there is none.

    Raises:
        DataError: it is a folder, or in none, or a file that is read.
    """
    require_replaceable([path], sources)
    if not path.parent.is_dir():
        raise DataError(f"{path}: cannot be written ({path.parent} is no folder)")


def require_replaceable(paths: Iterable[Path], sources: Iterable[Path | None]) -> None:
    """Pass if files can take the place of what has these names, and of nothing that is read.

    Raises:
        DataError: one is a folder, or a file that is read, be it by another name.
    """
    read = {_identity(source) for source in sources if source is not None} - {None}
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; need the name of a file")
        if read and _identity(path) in read:
            raise DataError(f"{path}: is what is read, and would be lost; need another name")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a file; None where there is none, or a pipe."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_dev, status.st_ino
