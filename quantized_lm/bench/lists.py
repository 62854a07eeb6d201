"""N-best lists to time on: made up with the statistics of real ones, or read from files.

A made-up list is a sentence with a few confusable words; its hypotheses are the cheapest
combinations of alternatives. What matters to speed is how much the hypotheses share, so a small
set of lists is chosen at even quantiles of contexts per tree node.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from quantized_lm.errors import DataError
from quantized_lm.nbest import read_utterances
from quantized_lm.tree import build_tree

Tokens = tuple[int, ...]

# Common words of speech; a made-up text is a row of them.
_WORDS = """
    a about after again all along also am an and another any are around as at away back be
    because been before began being between both but by call came can come could day did do
    does done door down each end even ever every eyes face far feel few find first for found
    four from gave get give go going good great had half hand has have he head hear help her
    here him his home house how i if in into is it its just keep kind knew know last left
    let life light like little live long look made make man many may me mean men might mind
    more most mother much must my name near never new night no not nothing now of off often
    old on once one only or other our out over own part people place put quite rather read
    right room said same saw say see seem set she should side since small so some soon still
    such take tell than that the their them then there these they thing think this those
    though thought three through time to together told too took turn two under until up upon
    us use very voice walk want was water way we well went were what when where which while
    who why will with without woman word work world would year yes yet you young
"""

# Of lists made from news sentences: words of a sentence, words of more than one token.
_MEAN_WORDS, _SPREAD_WORDS = 20.0, 7.5
_FEWEST_WORDS, _MOST_WORDS = 7, 45
_TOKENS_PER_WORD = (0.89, 0.10, 0.01)  # shares of words of 1, 2 and 3 tokens
_POSITIONS = (3, 6)  # confusable words of a sentence
_OPTIONS = (2, 4)  # words that may stand there
_DRAWN = 200  # lists among which a few are chosen


@dataclass(frozen=True)
class ListShape:
    """How large one list, or the mean of several, is to a model.

    Attributes:
        contexts: predictions to make with every hypothesis on its own, `</s>` counted.
        nodes: contexts that differ: what a prefix tree runs through the network.
        padded: hypotheses times the longest one's contexts.
    """

    contexts: float
    nodes: float
    padded: float

    @property
    def ratio(self) -> float:
        """Contexts per tree node: how much the hypotheses share."""
        return self.contexts / self.nodes


def shape_of(hypotheses: Sequence[Tokens]) -> ListShape:
    """Measure one list of token ids, boundary symbol not included."""
    tree = build_tree(hypotheses)
    lengths = [len(tokens) + 1 for tokens in hypotheses]
    return ListShape(sum(lengths), len(set(tree.parent[1:].tolist())), len(lengths) * max(lengths))


def mean_shape(lists: Sequence[Sequence[Tokens]]) -> ListShape:
    """Average over lists."""
    shapes = [shape_of(one) for one in lists]
    return ListShape(
        contexts=float(np.mean([shape.contexts for shape in shapes])),
        nodes=float(np.mean([shape.nodes for shape in shapes])),
        padded=float(np.mean([shape.padded for shape in shapes])),
    )


def made_up_lists(
    count: int, vocab_size: int, *, hypotheses: int = 100, seed: int = 0
) -> list[list[Tokens]]:
    """`count` of 200 lists, at even quantiles of contexts per node, least shared first.

    Args:
        count: lists wanted, at least 1.
        vocab_size: ids are drawn from 2 to vocab_size - 1; 0 is the boundary and 1 unknown.
        hypotheses: distinct hypotheses in each list.
        seed: the same seed gives the same lists.
    """
    drawn = _drawn_lists(vocab_size, hypotheses, seed)
    places = (np.arange(count) + 0.5) / count * _DRAWN
    return [list(drawn[int(place)]) for place in places]


def made_up_texts(count: int, *, hypotheses: int = 100, seed: int = 0) -> list[tuple[str, ...]]:
    """`made_up_lists` of common words, as texts."""
    words = _WORDS.split()
    lists = made_up_lists(count, len(words) + 2, hypotheses=hypotheses, seed=seed)
    return [
        tuple(" ".join(words[token - 2] for token in tokens) for tokens in one) for one in lists
    ]


@lru_cache(maxsize=4)
def _drawn_lists(vocab_size: int, hypotheses: int, seed: int) -> list[list[Tokens]]:
    """All of them, least shared first."""
    generator = np.random.default_rng(seed)
    drawn: list[list[Tokens]] = []
    while len(drawn) < _DRAWN:
        one = _made_up_list(generator, vocab_size, hypotheses)
        if len(one) == hypotheses:
            drawn.append(one)
    return sorted(drawn, key=lambda one: shape_of(one).ratio)


def _made_up_list(generator: np.random.Generator, vocab_size: int, hypotheses: int) -> list[Tokens]:
    """The cheapest combinations of one sentence's alternatives, cheapest first; may be too few."""

    def word() -> Tokens:
        length = 1 + int(generator.choice(len(_TOKENS_PER_WORD), p=_TOKENS_PER_WORD))
        return tuple(generator.integers(2, vocab_size, length).tolist())

    num_words = round(generator.normal(_MEAN_WORDS, _SPREAD_WORDS))
    num_words = min(max(num_words, _FEWEST_WORDS), _MOST_WORDS)
    words = [word() for _ in range(num_words)]
    num_positions = int(generator.integers(_POSITIONS[0], _POSITIONS[1], endpoint=True))
    options = {}
    for position in generator.choice(num_words, num_positions, replace=False).tolist():
        options[position] = [(words[position], 0.0)]
        for _ in range(int(generator.integers(*_OPTIONS, endpoint=True)) - 1):
            options[position].append((word(), float(generator.exponential())))
    positions = sorted(options)
    combinations = sorted(
        itertools.product(*(options[position] for position in positions)),
        key=lambda chosen: sum(cost for _, cost in chosen),
    )

    texts: dict[Tokens, None] = {}
    for chosen in combinations:
        if len(texts) == hypotheses:
            break
        said = list(words)
        for position, (tokens, _) in zip(positions, chosen, strict=True):
            said[position] = tokens
        texts[tuple(itertools.chain.from_iterable(said))] = None
    return list(texts)


def read_texts(path: Path, *, hypotheses: int, count: int) -> list[tuple[str, ...]]:
    """The first distinct hypotheses of `count` lists spread over a file of n-best lists.

    Raises:
        DataError: the file cannot be read or holds no list.
    """
    lists = [
        tuple(dict.fromkeys(hypothesis.text for hypothesis in utterance.hypotheses))[:hypotheses]
        for utterance in read_utterances(path)
    ]
    if not lists:
        raise DataError(f"{path} holds no n-best list; need at least one")
    places = np.unique(np.linspace(0, len(lists) - 1, min(count, len(lists))).astype(int))
    return [lists[place] for place in places]
