"""Write files so that a reader never sees half of one."""

from __future__ import annotations

import os
from pathlib import Path

from quantized_lm.errors import DataError


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, then rename: either the old file or the whole new one.

    After an error what was written beside it is gone.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_named(path: Path, content: bytes) -> None:
    """`write_atomic` of a file that a user has named.

    Raises:
        DataError: the folder is not there or may not be written, or the disk is full.
    """
    try:
        write_atomic(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
