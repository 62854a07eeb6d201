"""Lines of text files, gzip or plain; what cannot be read is named with its file and line."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from quantized_lm.errors import DataError
from quantized_lm.files import open_unpacked, reason


def read_lines(path: Path) -> Iterator[str]:
    """Every line, with its line end; a byte order mark is left out.

    Raises:
        DataError: missing, no whole gzip file, or not UTF-8; names file and line.
    """
    number = 0
    try:
        with open_unpacked(path) as content:
            for number, line in enumerate(content, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); convert it"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        place = f" after line {number}" if number else ""
        raise DataError(f"{path}: cannot be read{place} ({reason(error)}); check --data") from None
