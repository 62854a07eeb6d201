"""Input of a command that reads it twice: once to check all of it, once to work."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantized_lm.errors import DataError, SecondpassError, explain


@contextmanager
def readable_twice(source: Path) -> Iterator[Path]:
    """A file or folder itself; of a pipe, which can be read once, a copy in a temporary folder.

    The copy is named as the pipe is, and an error that names the copy names the pipe instead.

    Raises:
        DataError: the pipe cannot be read, or there is no room for its copy.
    """
    if source.is_file() or source.is_dir() or not source.exists():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="secondpass-") as folder:
        copy = Path(folder) / source.name
        try:
            with source.open("rb") as pipe, copy.open("wb") as handle:
                shutil.copyfileobj(pipe, handle)
        except OSError as error:
            raise DataError(
                f"{source}: cannot be copied to {folder} to be read twice ({error.strerror}); "
                "give a file instead"
            ) from None
        try:
            yield copy
        except SecondpassError as error:
            raise DataError(explain(error).replace(str(copy), str(source))) from None
