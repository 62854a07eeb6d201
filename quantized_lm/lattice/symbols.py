"""Words and their ids: the `words.txt` of Kaldi and k2, and one table for several lattices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantized_lm.errors import DataError, LatticeError
from quantized_lm.lattice.lattice import Lattice, Ragged

EPSILON = "<eps>"


def read_symbols(path: Path) -> dict[int, str]:
    """Words by id, out of lines "word id"; a byte order mark is left out.

    Raises:
        DataError: the file cannot be read, a line is of another form, or a word or an id is there
            twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no symbol table can be read ({error})") from None
    symbols: dict[int, str] = {}
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
            raise DataError(f'{path}:{number}: is {line[:40]!r}; need "word id"')
        word, symbol = parts[0], _small(parts[1], f"{path}:{number}")
        if symbol in symbols or word in seen:
            again = f"id {symbol}" if symbol in symbols else f"word {word!r}"
            raise DataError(f"{path}:{number}: {again} is there a second time")
        symbols[symbol] = word
        seen.add(word)
    return symbols


def symbols_text(symbols: Mapping[int, str]) -> str:
    """The same as lines, by id; id 0 is epsilon.

    Raises:
        DataError: a word is empty or has a space in it, which such a file cannot hold.
    """
    table = {0: EPSILON, **symbols}
    for symbol, word in table.items():
        if len(word.split()) != 1 or word.split()[0] != word:
            raise DataError(f"word {symbol} is {word!r}; a symbol table holds words without spaces")
    return "".join(f"{table[symbol]} {symbol}\n" for symbol in sorted(table))


def with_one_table(lattices: Sequence[Lattice]) -> list[Lattice]:
    """The same lattices with one symbol table; words get new ids where their tables differ.

    Raises:
        LatticeError: some have words and others ids alone.
    """
    if not lattices or all(lattice.symbols == lattices[0].symbols for lattice in lattices):
        return list(lattices)
    ids: dict[str, int] = {}
    result = []
    for lattice in lattices:
        if lattice.symbols is None:
            raise LatticeError(
                f"lattice {lattice.utterance!r} has ids alone and others have words; give a symbol "
                "table for all"
            )
        used, place = np.unique(lattice.words.values, return_inverse=True)
        new = [ids.setdefault(lattice.symbols[int(old)], len(ids) + 1) for old in used]
        values = np.array(new, np.int32)[place] if new else lattice.words.values
        result.append(replace(lattice, words=Ragged(lattice.words.splits, values)))
    table = {symbol: word for word, symbol in ids.items()}
    return [replace(lattice, symbols=table) for lattice in result]


def _small(text: str, where: str) -> int:
    if len(text) > 10 or int(text) >= 2**31:
        raise DataError(f"{where}: id {text[:20]} is too large; need less than 2^31")
    return int(text)
