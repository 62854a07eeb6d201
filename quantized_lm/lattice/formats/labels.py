"""Words in text files: ids, or the words themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.lattice.formats.base import Places, ReadOptions
from quantized_lm.lattice.formats.numbers import parse_ints
from quantized_lm.lattice.symbols import EPSILON


@dataclass(frozen=True)
class Words:
    """(E,) ids, 0 for none, and the words they stand for, where these are known."""

    ids: NDArray[np.int64]
    symbols: Mapping[int, str] | None


def are_ids(texts: Sequence[str]) -> bool:
    """Whether all are whole numbers."""
    joined = "".join(texts)
    return joined.isascii() and joined.isdigit()


def is_id(text: str) -> bool:
    """Whether it is a whole number below 2^31, give or take."""
    return text.isascii() and text.isdigit() and len(text) < 11


def ids_or_words(texts: Sequence[str], options: ReadOptions, places: Places) -> Words:
    """Ids if all texts are whole numbers; words otherwise, "<eps>" for none.

    Raises:
        LatticeError: an id is too large, or a word is not in the table of the options.
    """
    if are_ids(texts):
        return Words(parse_ints(texts, places, "word"), options.symbols)
    return words_to_ids([None if text == EPSILON else text for text in texts], options, places)


def words_to_ids(words: Sequence[str | None], options: ReadOptions, places: Places) -> Words:
    """Ids from the table of the options, or 1, 2, ... in order of appearance where it has none.

    Raises:
        LatticeError: a word is not in the table.
    """
    if options.symbols is None:
        ids: dict[str, int] = {}
        numbers = [0 if word is None else ids.setdefault(word, len(ids) + 1) for word in words]
        return Words(np.array(numbers, np.int64), {symbol: word for word, symbol in ids.items()})
    known = {word: symbol for symbol, word in options.symbols.items()}
    numbers = [0 if word is None else known.get(word, -1) for word in words]
    found = np.array(numbers, np.int64)
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        raise places.error(at, f"has word {words[at]!r}, which is not in the symbol table")
    return Words(found, options.symbols)
