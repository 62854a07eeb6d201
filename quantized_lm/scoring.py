"""From texts to scores: tokenize, build the tree, one forward pass, sums along the paths.

The service and the offline commands both call this; it knows nothing of HTTP or of other scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.artifact import LoadedModel
from quantized_lm.errors import TooLongError
from quantized_lm.tokenizer import BOUNDARY_ID, Encoding
from quantized_lm.tree import TokenTree, build_tree


@dataclass(frozen=True)
class ScoreRequest:
    """Texts to score against one context.

    Attributes:
        texts: hypotheses; an empty one is silence.
        context: earlier texts, oldest first; the model sees as much of the newest as fits.
        final: whether `</s>` is scored.
    """

    texts: tuple[str, ...]
    context: tuple[str, ...] = ()
    final: bool = True


@dataclass(frozen=True)
class TextScore:
    """One text's score and what it is made of.

    Attributes:
        log_prob: nats, the sum of `token_log_probs`.
        token_ids: tokens of the normalized text, `</s>` last when final.
        token_log_probs: (len(token_ids),) float32, nats.
        word_starts: position of each word's first token.
        words: normalized words. oov: those with an unknown token.
    """

    log_prob: float
    token_ids: tuple[int, ...]
    token_log_probs: NDArray[np.float32]
    word_starts: tuple[int, ...]
    words: tuple[str, ...]
    oov: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the text, `</s>` not counted."""
        return len(self.token_ids) - self.token_ids.count(BOUNDARY_ID)

    def word_log_probs(self) -> list[float]:
        """Per word, the sum over its tokens; `</s>` belongs to none."""
        ends = (*self.word_starts, self.num_tokens)[1:]
        token_log_probs = self.token_log_probs.astype(np.float64)
        return [
            float(token_log_probs[start:end].sum())
            for start, end in zip(self.word_starts, ends, strict=True)
        ]


@dataclass(frozen=True)
class Usage:
    """What a list cost.

    Attributes:
        hypotheses: texts. tokens: log-probabilities asked for, `</s>` counted, repeats kept.
        tree_nodes: log-probabilities computed. forward_nodes: nodes run through the network.
        cache_hits: nodes found in a state kept from an earlier request.
    """

    hypotheses: int
    tokens: int
    tree_nodes: int
    forward_nodes: int
    cache_hits: int


@dataclass(frozen=True)
class ListScores:
    """Scores of one request, in the order of its texts."""

    scores: tuple[TextScore, ...]
    usage: Usage


@dataclass(frozen=True)
class PreparedList:
    """A request made ready for the network."""

    encodings: tuple[Encoding, ...]
    tree: TokenTree
    final: bool

    @property
    def cost_tokens(self) -> int:
        """Nodes to score or to run: what a batch's token budget is spent on."""
        return self.tree.num_nodes


def prepare(request: ScoreRequest, loaded: LoadedModel) -> PreparedList:
    """Tokenize a request and build its tree.

    Raises:
        TooLongError: a text alone exceeds the model's length; the pointer names it.
    """
    encodings = tuple(loaded.tokenizer.encode(text) for text in request.texts)
    limit = loaded.model.max_tokens
    for index, encoding in enumerate(encodings):
        if len(encoding.ids) + 1 > limit:
            raise TooLongError(
                f"text has {len(encoding.ids)} tokens; {loaded.name} takes at most {limit - 1}",
                pointer=f"/hypotheses/{index}/text",
            )
    longest = max((len(encoding.ids) for encoding in encodings), default=0)
    context = _context_ids(request.context, loaded, room=limit - longest - 1)
    tree = build_tree([e.ids for e in encodings], context=context, final=request.final)
    return PreparedList(encodings, tree, request.final)


def run_batch(prepared: Sequence[PreparedList], loaded: LoadedModel) -> list[ListScores]:
    """Score several lists in one forward pass; each gets the numbers it would get alone."""
    trees = [item.tree for item in prepared]
    states = [loaded.model.new_state(tree.token[1 : tree.base + 1].tolist()) for tree in trees]
    log_probs = loaded.model.extend(
        states,
        [tree.parent[tree.base + 1 :] for tree in trees],
        [tree.token[tree.base + 1 :] for tree in trees],
    )
    return [_collect(item, part) for item, part in zip(prepared, log_probs, strict=True)]


def score_lists(requests: Sequence[ScoreRequest], loaded: LoadedModel) -> list[ListScores]:
    """Prepare and score in one go.

    Raises:
        TooLongError: as `prepare`.
    """
    return run_batch([prepare(request, loaded) for request in requests], loaded)


def _context_ids(context: Sequence[str], loaded: LoadedModel, *, room: int) -> list[int]:
    """The newest context that fits, each text ended by the boundary symbol."""
    ids: list[int] = []
    for text in context:
        ids.extend((*loaded.tokenizer.encode(text).ids, BOUNDARY_ID))
    return ids[max(0, len(ids) - room) :]


def _collect(item: PreparedList, log_prob: NDArray[np.float32]) -> ListScores:
    tree = item.tree
    ending = (BOUNDARY_ID,) if item.final else ()
    scores: list[TextScore] = []
    for index, encoding in enumerate(item.encodings):
        path_log_probs = log_prob[tree.path(index) - tree.base - 1]
        scores.append(
            TextScore(
                log_prob=float(path_log_probs.astype(np.float64).sum()),
                token_ids=(*encoding.ids, *ending),
                token_log_probs=path_log_probs,
                word_starts=encoding.word_starts,
                words=encoding.words,
                oov=encoding.oov,
            )
        )
    usage = Usage(
        hypotheses=len(scores),
        tokens=sum(len(score.token_ids) for score in scores),
        tree_nodes=tree.num_scored,
        forward_nodes=int(np.unique(tree.parent[1:]).size),
        cache_hits=0,
    )
    return ListScores(tuple(scores), usage)
