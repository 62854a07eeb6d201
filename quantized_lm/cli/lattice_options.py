"""The options of commands that read lattices: the format, the words of ids, how many arcs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantized_lm.lattice.formats import LatticeFormat, ReadOptions, format_by_name
from quantized_lm.lattice.symbols import read_symbols

MAX_ARCS = ReadOptions().max_arcs
SymbolsOption = Annotated[
    Path | None, typer.Option(help='Words of the lattices\' ids, lines "word id" (words.txt).')
]
MaxArcsOption = Annotated[int, typer.Option(min=1, help="A lattice with more arcs is refused.")]


def named_format(name: str | None) -> LatticeFormat | None:
    """The format of this name; none where the suffixes of files are to say it.

    Raises:
        LatticeError: there is no such format.
    """
    return format_by_name(name) if name is not None else None


def named_symbols(path: Path | None) -> dict[int, str] | None:
    """Words by id out of this file; none where lattices bring their own.

    Raises:
        DataError: the file is no symbol table.
    """
    return read_symbols(path) if path is not None else None
