"""A lattice as a search over words takes it: every arc has one word or none, and one score.

Arcs of several words become chains. What is no word (pauses, noises, sentence marks) is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.tokenizer import Tokenizer, is_word

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ArcWeights:
    """What the lattice's own scores, and lengths, count for.

    Attributes:
        am_scale, graph_scale: of the scores on the arcs. 0 removes them, even where they are
            infinite; below 0 the decoder's LM is taken away.
        word_bonus, token_bonus: nats that are added for every word and every token of the LM.
    """

    am_scale: float = 1.0
    graph_scale: float = 0.0
    word_bonus: float = 0.0
    token_bonus: float = 0.0


@dataclass(frozen=True, eq=False)
class SpokenLattice:
    """Arcs for a search over words.

    Attributes:
        src, dst: (A,) int32 states in topological order, src ascending; the last one is final.
        word: (A,) int32 numbers of words, 0 for none. score: (A,) float64, nats.
        arc: (A,) int32, the lattice's arc that this one is, or is part of; its score is with the
            first of its parts.
        words: the word by its number; "" is number 0.
        pieces: tokens of the LM by a word's number. num_words: as its text rules count, likewise.
        bonus: (W,) float64, nats that a word counts for by being there, likewise; in `score`.
        oov: numbers of words with an unknown token.
    """

    src: Ints
    dst: Ints
    word: Ints
    score: Floats
    arc: Ints
    words: tuple[str, ...]
    pieces: tuple[tuple[int, ...], ...]
    num_words: tuple[int, ...]
    bonus: Floats
    oov: frozenset[int]


def speak(
    lattice: Lattice, tokenizer: Tokenizer, weights: ArcWeights, *, silence: Collection[str] = ()
) -> SpokenLattice:
    """Number the words of a lattice, tokenize them and weigh its scores.

    Args:
        silence: further symbols that are no words.

    Raises:
        LatticeError: the lattice has ids of words and no symbol table, or a score of -infinity
            that a scale below 0 would make the best of all, or scores too large to be added up.
    """
    numbers, words = _numbered(lattice, silence)
    encodings = [tokenizer.encode(word) for word in words]
    bonus = np.array(
        [
            weights.word_bonus * len(one.words) + weights.token_bonus * len(one.ids)
            for one in encodings
        ]
    )
    chained = _chained(lattice, numbers)
    own = _own_scores(lattice, weights)
    return SpokenLattice(
        chained.src,
        chained.dst,
        chained.word,
        np.where(chained.is_first, own[chained.arc], 0.0) + bonus[chained.word],
        chained.arc,
        tuple(words),
        tuple(one.ids for one in encodings),
        tuple(len(one.words) for one in encodings),
        bonus,
        frozenset(number for number, one in enumerate(encodings) if one.oov),
    )


@dataclass(frozen=True, eq=False)
class _Chained:
    src: Ints
    dst: Ints
    word: Ints
    arc: Ints
    is_first: NDArray[np.bool_]


def weighed(scores: Floats, scale: float) -> Floats:
    """Scores times a scale. Scale 0 removes a term, so that 0 times infinity is 0."""
    return scale * scores if scale else np.zeros(len(scores))


def _own_scores(lattice: Lattice, weights: ArcWeights) -> Floats:
    """(A,) each arc's score without bonuses, nats; -infinity or finite."""
    with np.errstate(invalid="ignore", over="ignore"):  # refused below
        own = weighed(lattice.am, weights.am_scale) + weighed(lattice.graph, weights.graph_scale)
        counts = np.isfinite(own) | (np.isfinite(lattice.am) & np.isfinite(lattice.graph))
        together = np.abs(own[counts]).sum()
    if not np.isfinite(together):
        raise LatticeError(
            "the scores of all arcs are too large to be added up; need a finite sum of their sizes",
            pointer="/arcs",
        )
    bad = ~(own < np.inf)
    if bad.any():
        at = int(np.argmax(bad))
        raise LatticeError(
            f"arc {at} has am score {lattice.am[at]} and graph score {lattice.graph[at]}, which a "
            "scale below 0 turns around; need finite scores, or scales of 0 or more",
            pointer=f"/arcs/{at}",
        )
    return own


def _numbered(lattice: Lattice, silence: Collection[str]) -> tuple[Ints, list[str]]:
    """(V,) the number of each word on an arc, and the words by number; each word has one number."""
    ids, inverse = np.unique(lattice.words.values, return_inverse=True)
    if len(ids) and lattice.symbols is None:
        raise LatticeError(
            "the lattice has ids for words; need its symbol table", pointer="/symbols"
        )
    words = [""]
    number_of = np.zeros(len(ids), np.int32)
    table = lattice.symbols or {}
    known: dict[str, int] = {}  # a table may have a word under several ids
    for position, word in enumerate(ids.tolist()):
        symbol = table[word]
        if is_word(symbol) and symbol not in silence:
            number_of[position] = known.setdefault(symbol, len(words))
            if known[symbol] == len(words):
                words.append(symbol)
    return number_of[inverse], words


def _chained(lattice: Lattice, numbers: Ints) -> _Chained:
    """Arcs of one word or none; those of several are cut, with states of their own between."""
    arc_of_word = np.repeat(np.arange(lattice.num_arcs), np.diff(lattice.words.splits))
    arc_of_word, numbers = arc_of_word[numbers > 0], numbers[numbers > 0]
    count = np.bincount(arc_of_word, minlength=lattice.num_arcs)
    parts = np.maximum(count, 1)
    arc = np.repeat(np.arange(lattice.num_arcs), parts)
    first_part = np.cumsum(parts) - parts
    is_first = np.zeros(len(arc), np.bool_)
    is_first[first_part] = True
    word = np.zeros(len(arc), np.int32)
    has_word = (count > 0)[arc]
    word[has_word] = numbers
    # The states within an arc come right after the one that it leaves.
    inserted = np.bincount(lattice.src, weights=parts - 1, minlength=lattice.num_states)
    moved = np.arange(lattice.num_states) + (np.cumsum(inserted) - inserted).astype(np.int64)
    within = lattice.src[arc] + np.cumsum(~is_first)
    is_last = np.append(is_first[1:], True)
    start = np.where(is_first, moved[lattice.src[arc]], within)
    end = np.where(is_last, moved[lattice.dst[arc]], np.append(within[1:], 0))
    order = np.argsort(start, kind="stable")
    return _Chained(
        start[order].astype(np.int32),
        end[order].astype(np.int32),
        word[order],
        arc[order].astype(np.int32),
        is_first[order],
    )
