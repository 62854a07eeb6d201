"""One process at a time in a run's folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantized_lm.errors import DataError


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder's lock: two runs at once would halve each other's speed and share files.

    Raises:
        DataError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{folder}: another `secondpass` works there; wait for it or stop it"
            ) from None
        yield
