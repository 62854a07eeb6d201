"""From texts to scores: tokenize, build the tree, forward passes, sums along the paths.

The service and the offline commands both call this; it knows nothing of HTTP or of other scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import TooLongError
from quantized_lm.models.base import LanguageModel
from quantized_lm.prefix_cache import Reused
from quantized_lm.pruning import TotalOf, Wave, search
from quantized_lm.tokenizer import BOUNDARY_ID, EncodedTexts, Tokenizer
from quantized_lm.tree import TokenTree, merge_prefixes, path_sums
from quantized_lm.waves import run_all


class TextScorer(Protocol):
    """A model with what its texts go through, such as a `LoadedModel`."""

    @property
    def name(self) -> str:
        """For messages and for the names of scores."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary and text rules."""

    @property
    def model(self) -> LanguageModel:
        """What scores tokens."""


@dataclass(frozen=True)
class ScoreRequest:
    """Texts to score against one context.

    Attributes:
        texts: hypotheses; an empty one is silence.
        context: earlier texts, oldest first; the model sees as much of the newest as
            `context_room` allows.
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
        cache_hits: nodes of context and texts found in a tree kept from an earlier request.
        skipped_nodes: log-probabilities not computed, as no text that needs them could win.
        skipped_hypotheses: texts that were not scored to their end for that reason.
    """

    hypotheses: int
    tokens: int
    tree_nodes: int
    forward_nodes: int
    cache_hits: int
    skipped_nodes: int = 0
    skipped_hypotheses: int = 0


@dataclass(frozen=True)
class PreparedList:
    """A request made ready for the network.

    Attributes:
        texts: those of the request. encoded: their tokens. tree: the tokens merged.
        final: whether `</s>` is scored.
        tokenizer: the one that encoded them.
        total_of: if given, only the text of the highest total is wanted.
    """

    texts: tuple[str, ...]
    encoded: EncodedTexts
    tree: TokenTree
    final: bool
    tokenizer: Tokenizer
    total_of: TotalOf | None = None

    @property
    def cost_tokens(self) -> int:
        """Nodes to score or to run: what a batch's token budget is spent on."""
        return self.tree.num_nodes

    @property
    def context(self) -> Sequence[int]:
        """Token ids that the model reads first."""
        ids: list[int] = self.tree.token[1 : self.tree.base + 1].tolist()
        return ids

    @property
    def recurs(self) -> bool:
        """Whether it has a context, or is a list of unfinished texts."""
        return self.tree.base > 0 or not self.final

    @cached_property
    def oov(self) -> Mapping[int, tuple[str, ...]]:
        """The words with an unknown token, in order, repeats kept, of each text that has some."""
        positions = np.flatnonzero(self.encoded.num_oov).tolist()
        return {at: self.tokenizer.encode(self.texts[at]).oov for at in positions}

    def begin(self) -> ListScoring:
        """Start to score it."""
        return ListScoring(self)


@dataclass(frozen=True)
class ListScores:
    """Scores of one request, in the order of its texts.

    Attributes:
        prepared: what was scored.
        log_prob: (H,) float64, nats, of each text; -infinity where it is not complete.
        is_complete: (H,) bool, False for texts that were given up, as they could not win.
        path_log_prob: (P,) float32, nats, of each node of `prepared.tree.path_node`, as far as
            its text was scored.
        usage: what it cost.
    """

    prepared: PreparedList
    log_prob: NDArray[np.float64]
    is_complete: NDArray[np.bool_]
    path_log_prob: NDArray[np.float32]
    usage: Usage

    @cached_property
    def scores(self) -> tuple[TextScore, ...]:
        """Every text in detail, which most callers do not need."""
        return tuple(self.detail(position) for position in range(len(self.log_prob)))

    def detail(self, position: int) -> TextScore:
        """One text in detail."""
        prepared = self.prepared
        end = int(prepared.tree.path_length[: position + 1].sum())
        encoding = prepared.tokenizer.encode(prepared.texts[position])
        ending = (BOUNDARY_ID,) if prepared.final else ()
        return TextScore(
            log_prob=float(self.log_prob[position]),
            token_ids=(*encoding.ids, *ending),
            token_log_probs=self.path_log_prob[end - len(encoding.ids) - len(ending) : end],
            word_starts=encoding.word_starts,
            words=encoding.words,
            oov=encoding.oov,
        )

    @property
    def oov(self) -> Mapping[int, tuple[str, ...]]:
        """As that of the list."""
        return self.prepared.oov


class ListScoring:
    """A list on its way through the network."""

    def __init__(self, prepared: PreparedList) -> None:
        self._prepared = prepared
        self._search = search(prepared.tree, prepared.total_of)
        self._reused = Reused()

    def next_wave(self) -> Wave | None:
        """What to score next; None once all that is wanted is known."""
        return self._search.next_wave()

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Take the answer to the last wave."""
        self._search.learn(log_prob)

    def stop(self, cut: str) -> None:
        """Nothing: a text that is scored in part has no score."""

    def reuse(self, reused: Reused) -> None:
        """Be told what of it was known from earlier work."""
        self._reused = reused

    def result(self) -> ListScores:
        """The scores that were found."""
        tree = self._prepared.tree
        path_log_prob = self._search.log_prob[tree.path_node]
        is_complete = self._search.is_known[tree.leaf]
        log_prob = path_sums(path_log_prob, tree.path_length)
        known = int(np.count_nonzero(self._search.is_known)) - tree.base - 1
        usage = Usage(
            hypotheses=len(self._prepared.texts),
            tokens=len(path_log_prob),
            tree_nodes=known - self._reused.log_probs,
            forward_nodes=self._search.num_run - self._reused.run_nodes,
            cache_hits=self._reused.nodes,
            skipped_nodes=tree.num_scored - known,
            skipped_hypotheses=int(np.count_nonzero(~is_complete)),
        )
        log_prob[~is_complete] = -np.inf
        return ListScores(self._prepared, log_prob, is_complete, path_log_prob, usage)


def prepare(request: ScoreRequest, scorer: TextScorer) -> PreparedList:
    """Tokenize a request and build its tree.

    Raises:
        TooLongError: a text alone exceeds the model's length; the pointer names it.
    """
    return prepare_encoded(request, scorer.tokenizer.encode_all(request.texts), scorer)


def prepare_encoded(
    request: ScoreRequest, encoded: EncodedTexts, scorer: TextScorer
) -> PreparedList:
    """`prepare` for texts that are tokenized already.

    Raises:
        TooLongError: as `prepare`.
    """
    room = context_room(scorer.model.max_tokens, longest_text(encoded, scorer) + 1)
    context = scorer.tokenizer.context_ids(request.context, room=room)
    ids, lengths = encoded.ids, encoded.num_tokens + int(request.final)
    if not request.final:
        ids = ids[ids != BOUNDARY_ID]
    tree = merge_prefixes(ids, lengths, context=context)
    return PreparedList(request.texts, encoded, tree, request.final, scorer.tokenizer)


def longest_text(encoded: EncodedTexts, scorer: TextScorer) -> int:
    """Tokens of the longest text, `</s>` not counted.

    Raises:
        TooLongError: the model does not take as many; the pointer names the first such text.
    """
    limit = scorer.model.max_tokens
    longest = int(encoded.num_tokens.max(initial=0))
    if longest + 1 > limit:
        index = int(np.argmax(encoded.num_tokens + 1 > limit))
        raise TooLongError(
            f"text has {encoded.num_tokens[index]} tokens; {scorer.name} takes at most {limit - 1}",
            pointer=f"/hypotheses/{index}/text",
        )
    return longest


def context_room(max_tokens: int, text_tokens: int = 0) -> int:
    """Most tokens of context that a model reads before texts.

    Half of what it takes, so that neither the other texts of a list nor the words that a partial
    text grows by change what it reads; half of that, and so on, only where a text needs the room.

    Args:
        max_tokens: what the model takes. text_tokens: of the longest text, `</s>` counted.
    """
    room = max_tokens // 2
    while room > max_tokens - text_tokens:
        room //= 2
    return room


def run_batch(prepared: Sequence[PreparedList], scorer: TextScorer) -> list[ListScores]:
    """Score several lists together; each gets the numbers it would get alone.

    One forward pass, and a few more for lists of which only the best text is wanted.
    """
    return run_all(prepared, scorer.model)


def score_lists(requests: Sequence[ScoreRequest], scorer: TextScorer) -> list[ListScores]:
    """Prepare and score in one go.

    Raises:
        TooLongError: as `prepare`.
    """
    return run_batch([prepare(request, scorer) for request in requests], scorer)
