"""`secondpass convert`: lattices of one format in, the same lattices in another out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from quantized_lm.cli.console import command, note, progress
from quantized_lm.cli.lattice_options import (
    MAX_ARCS,
    MaxArcsOption,
    SymbolsOption,
    named_format,
    named_symbols,
)
from quantized_lm.errors import DataError
from quantized_lm.files import (
    folder_beside,
    naming_file,
    require_file_name,
    require_replaceable,
    write_named,
)
from quantized_lm.lattice.files import (
    lattice_files,
    names_lattice,
    read_lattices,
    write_lattices,
)
from quantized_lm.lattice.formats import LATTICE_FORMATS, LatticeFormat, ReadOptions, format_of_path
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.symbols import symbols_text, with_one_table

_NAMES = ", ".join(LATTICE_FORMATS)
_DEFAULTS = ReadOptions()
_MOST_NAMED = 10  # of empty lattices


@command
def run(  # noqa: PLR0913 - each is an option of the command
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Lattice, archive, or folder of them; or .gz.")
    ],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Lattice, archive or folder/; .gz packs a file."),
    ],
    *,
    source_format: Annotated[
        str | None, typer.Option("--from", help=f"Format of IN: {_NAMES}. [default: its suffix]")
    ] = None,
    target_format: Annotated[
        str | None, typer.Option("--to", help="Format of OUT. [default: its suffix]")
    ] = None,
    symbols: SymbolsOption = None,
    symbols_out: Annotated[
        Path | None, typer.Option(help="Where to write the words of OUT's ids.")
    ] = None,
    words_on: Annotated[
        str, typer.Option(help="Which labels of k2 are words: auto, labels or aux_labels.")
    ] = _DEFAULTS.words_on,
    max_arcs: MaxArcsOption = MAX_ARCS,
) -> None:
    """Convert lattices of k2, Kaldi, HTK and OpenFst into each other, every score bit that fits.

    What the format of OUT cannot hold is named on standard error. OUT appears once it is complete.
    With a slash at its end, or where it is one already, it is a folder with a file per lattice.

    secondpass convert lattice.slf.gz lattice.k2.json

    secondpass convert lats.ark lattices/ --to htk --symbols words.txt

    secondpass convert htk_folder lats.ark --symbols-out words.txt
    """
    options = ReadOptions(
        symbols=named_symbols(symbols),
        words_on=words_on,
        max_arcs=max_arcs,
        keeps_empty=True,
    )
    given = named_format(source_format)
    files = lattice_files(source, given=given)
    if symbols_out is not None:
        require_file_name(symbols_out, symbols, *files)
    target = Path(out)
    to = named_format(target_format) or format_of_path(target)
    lattices = with_one_table(_read(files, given, options))
    is_folder = out.endswith("/") or _is_folder(source, target, to, len(lattices))
    ids = [lattice.utterance for lattice in lattices]
    written = folder_files(target, ids, to) if is_folder else [target]
    require_replaceable(written, [symbols, *files])
    if symbols_out is not None:
        _require_apart(symbols_out, written)
    # Made before OUT is: words that cannot be written leave nothing written.
    words = b"" if symbols_out is None or not lattices else _words(symbols_out, lattices)
    if is_folder:
        write_folder(target, lattices, to)
    else:
        write_lattices(target, lattices, target=to)
    if symbols_out is not None:
        write_named(symbols_out, words)
    arcs = sum(lattice.num_arcs for lattice in lattices)
    dropped = to.drops(lattices)
    if symbols_out is not None and "symbols" in dropped:
        dropped.remove("symbols")
    if dropped:
        note(f"{to.name} does not hold, and so was left out: {', '.join(dropped)}")
    note(f"{target} is written: {len(lattices)} lattices, {arcs} arcs")


def _read(
    files: Sequence[Path], given: LatticeFormat | None, options: ReadOptions
) -> list[Lattice]:
    lattices = []
    with progress("files") as bar:
        for path in bar.track(files, description="read"):
            lattices += read_lattices(path, options, source=given)
    empty = [lattice.utterance for lattice in lattices if not lattice.num_arcs]
    if empty:
        note(f"{len(empty)} lattices are empty and left out: {', '.join(empty[:_MOST_NAMED])}")
    return [lattice for lattice in lattices if lattice.num_arcs]


def _is_folder(source: Path, target: Path, to: LatticeFormat, count: int) -> bool:
    if target.is_dir():
        return True
    return not names_lattice(target) and (source.is_dir() or (count > 1 and not to.holds_many))


def write_folder(target: Path, lattices: Sequence[Lattice], to: LatticeFormat) -> None:
    """A file for each lattice, named by its utterance; all of them or none.

    Raises:
        DataError: the folder cannot be written, or as `file_names`.
    """
    files = folder_files(target, [lattice.utterance for lattice in lattices], to)
    with naming_file(target), folder_beside(target) as beside:
        with progress("lattices") as bar:
            pairs = zip(files, lattices, strict=True)
            for path, lattice in bar.track(pairs, total=len(files), description="write"):
                write_lattices(beside / path.name, [lattice], target=to)
        target.mkdir(exist_ok=True)
        for path in files:
            (beside / path.name).replace(path)


def folder_files(folder: Path, utterances: Sequence[str], to: LatticeFormat) -> list[Path]:
    """The file of each utterance in a folder.

    Raises:
        DataError: as `file_names`.
    """
    return [folder / f"{name}{to.suffixes[0]}" for name in file_names(utterances, folder)]


def file_names(utterances: Sequence[str], folder: Path) -> list[str]:
    """What the files of utterances are called: as their ids.

    An id that is a path, as HTK's usual /data/plp/u1.plp, gives its last part without the suffix.

    Raises:
        DataError: one cannot be the name of a file, or two are the same.
    """
    ids: dict[str, str] = {}
    for utterance in utterances:
        name = PurePosixPath(utterance).stem if "/" in utterance else utterance
        if not name or name.startswith(".") or set(name) & set("\\\0"):
            raise DataError(f"utterance id is {utterance!r}, which cannot be the name of a file")
        if name in ids:
            both = "is there twice" if ids[name] == utterance else f"and {ids[name]!r} are one name"
            raise DataError(f"utterance id {utterance!r} {both}, and names a file of {folder}")
        ids[name] = utterance
    return list(ids)


def _require_apart(words: Path, written: Sequence[Path]) -> None:
    """Pass if the words do not take the place of a lattice that was just written."""
    is_file = words.is_file() or not words.exists()
    if is_file and os.path.realpath(words) in map(os.path.realpath, written):
        raise DataError(f"{words}: is a file of OUT, and would be lost; need another name")


def _words(path: Path, lattices: Sequence[Lattice]) -> bytes:
    """The symbol table of all of them, as the file at `path` shall hold it."""
    symbols = lattices[0].symbols
    if symbols is None:
        raise DataError(f"{path}: the lattices have ids alone; there are no words to write")
    return symbols_text(symbols).encode()
