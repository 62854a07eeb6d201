"""What a command is to rescore, whatever does the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Corpus:
    """Lists to rescore, and by how many.

    Attributes:
        source: file of lists.
        first_pass: key of FIRST_PASS.
        model: artifact folder.
        workers: processes, at most; 0 is one per CPU. Only where an engine has several.
        keeps_failed: a list that cannot be ranked keeps the decoder's order.
    """

    source: Path
    first_pass: str
    model: Path
    workers: int = 0
    keeps_failed: bool = False
