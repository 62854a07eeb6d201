"""The best word sequences of a lattice under its own scores and an LM's, wave by wave.

Sequences grow word by word (word_prefixes.h); a prefix is as good as

    max over its states of (score to there + score from there to the end) + lm_scale * LM(prefix)

plus what the LM will say of the rest: 0 is a bound, and what single words of this lattice have
cost so far is a guess. The guess gives the order. The bound says what can be left out: once none is
above the totals found, these are the best there are, and the search is exact. A wave is one forward
pass, over the most promising prefix of every length: each wave moves a whole beam one word on, and
from the last one a sequence is complete. The first wave takes the lattice's own best sequences to
their ends, so that there is an answer at once. Knows no model: it says what to score, and is told.

After Kaldi's pruned composition (Xu et al., "A pruned RNNLM lattice-rescoring algorithm for
automatic speech recognition", ICASSP 2018): forward score plus lattice score to the end plus a
correction for the new LM, and histories merged by their last words.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import InputError, LatticeError
from quantized_lm.lattice.spoken import SpokenLattice
from quantized_lm.ops._cpu import WordPrefixes
from quantized_lm.pruning import ROUNDING_NATS, Wave
from quantized_lm.tokenizer import BOUNDARY_ID

Ids = NDArray[np.int32]
_NEW_WORD_NATS = 6.0  # a guess of what a word costs that the LM was not yet asked for
_LATER_PIECE_NATS = 2.0  # and each piece of a word after its first


@dataclass(frozen=True)
class SearchLimits:
    """Where a search stops before it has proved anything.

    Attributes:
        num_best: word sequences wanted.
        seeds: sequences that are scored first: the best by the lattice alone.
        order: of histories: of prefixes in the same state with the same last order - 1 words only
            the better one goes on. None merges nothing.
        beam: nats; what is expected to end this far below the totals found is left out. None
            leaves out only what cannot win.
        patience: LM steps without a better sequence. None waits for ever.
        max_lm_steps: nodes run through the network. max_arcs: arcs of the lattice followed.
    """

    num_best: int = 1
    seeds: int = 10
    order: int | None = 4
    beam: float | None = None
    patience: int | None = 300
    max_lm_steps: int = 6_000
    max_arcs: int = 5_000_000

    def __post_init__(self) -> None:
        for name in ("num_best", "seeds", "patience", "max_lm_steps", "max_arcs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; need 1 or more", pointer=f"/{name}")
        if self.beam is not None and not self.beam >= 0:
            raise InputError(f"beam is {self.beam}; need 0 or more", pointer="/beam")
        if self.order is not None and self.order < 2:
            raise InputError(f"order is {self.order}; need 2 or more", pointer="/order")

    @classmethod
    def exact(cls, *, num_best: int = 1) -> SearchLimits:
        """Nothing is left out that could win, however long that takes."""
        endless = 2**62
        return cls(num_best, order=None, patience=None, max_lm_steps=endless, max_arcs=endless)


@dataclass
class _Prefix:
    """What is known of a prefix that was met.

    Attributes:
        node: of the LM's tree, where it stands so far. num_tokens: on the path to there, the
            context's counted. log_prob: nats, of its own.
        rest: the pieces of its last word that are still to come.
        num_words: of it.
    """

    node: int
    num_tokens: int
    log_prob: float
    rest: tuple[int, ...]
    num_words: int


@dataclass(frozen=True, eq=False)
class _Growth:
    """A prefix that grows in a wave, and where in the wave its numbers are.

    Attributes:
        rest: of its rest pieces. ends: whether it is a sequence of the lattice. end: of `</s>`,
            where it is scored.
        children: (C,) ids.
        asked: for each child where its first piece is; None for a word without pieces.
    """

    prefix: int
    rest: range
    ends: bool
    end: int | None
    children: Ids
    asked: list[int | None]


@dataclass(frozen=True)
class FoundSequence:
    """A word sequence that was scored to its end.

    Attributes:
        prefix: its number in the search.
        total: nats, the lattice's score and the LM's at its scale.
        log_prob: nats, the LM's, `</s>` included.
    """

    prefix: int
    total: float
    log_prob: float


class LatticeSearch:
    """One lattice, one LM.

    Args:
        spoken: the lattice with its scores weighed.
        lm_scale: of the LM's log-probability. Below 0 nothing can be proved but by trying all.
        limits: see there.
        num_context: tokens before the first word: nodes 1.. of the LM's state.
        max_tokens: most tokens of a sequence, `</s>` not counted.
        final: whether `</s>` is scored.

    Attributes:
        found: best first.
        cuts: what kept the search from being exact: names of `SearchLimits`, "max_tokens", or what
            `stop` was given.
        num_nodes: log-probabilities asked for.

    Raises:
        LatticeError: the lattice has no path whose score is finite.
    """

    def __init__(
        self,
        spoken: SpokenLattice,
        *,
        lm_scale: float,
        limits: SearchLimits,
        num_context: int = 0,
        max_tokens: int,
        final: bool = True,
    ) -> None:
        self.found: list[FoundSequence] = []
        self.cuts: set[str] = set()
        self.num_nodes = 0
        self._spoken = spoken
        self._lm_scale = lm_scale
        self._limits = limits
        self._final = final
        self._deepest = num_context + max_tokens
        self._lattice = WordPrefixes(spoken.src, spoken.dst, spoken.word, spoken.score)
        if self._lattice.bounds(np.zeros(1, np.int32))[0] == -np.inf:
            raise LatticeError("no path of the lattice has a finite score", pointer="/arcs")
        self._next_node = num_context + 1
        self._prefixes = {0: _Prefix(num_context, num_context, 0.0, (), 0)}
        self._open: dict[int, list[tuple[float, int]]] = {}  # by words, heaps of (-expected, id)
        self._grown: set[int] = set()
        self._wave: list[_Growth] = []
        self._parents: list[int] = []
        self._tokens: list[int] = []
        self._run: set[int] = set()
        self._best_at = 0  # LM steps when the best sequence was found
        self._word_nats = np.zeros(len(spoken.words))
        self._word_count = np.zeros(len(spoken.words), np.int64)
        self._is_seeded = False

    @property
    def num_run(self) -> int:
        """LM steps: nodes run through the network."""
        return len(self._run)

    @property
    def num_arcs(self) -> int:
        """Arcs followed."""
        return self._lattice.num_followed

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to score."""
        return self._is_seeded and not any(self._open.values())

    @property
    def is_exact(self) -> bool:
        """Whether no sequence of the lattice can be better than those found."""
        return self.is_over and not self.cuts

    def words(self, prefix: int) -> list[str]:
        """Those of a prefix."""
        return [self._spoken.words[number] for number in self._lattice.words(prefix).tolist()]

    def best_by_lattice(self, count: int) -> list[FoundSequence]:
        """Up to `count` sequences, best first, by the lattice alone: the LM counts nothing."""
        ends = self._lattice.best(count, self.num_arcs + self._limits.max_arcs).tolist()
        scores = [(end, self._lattice.end_score(end)) for end in ends]
        return [FoundSequence(end, score, np.nan) for end, score in scores if score > -np.inf]

    def path(self, prefix: int) -> Ids:
        """Numbers of the spoken lattice's arcs on the best path of a complete prefix."""
        return self._lattice.path(prefix)

    def log_probs(self, prefix: int) -> list[float]:
        """The LM's score of each word of a prefix that was grown, nats."""
        chain = self.chain(prefix)
        so_far = [self._prefixes[one].log_prob for one in chain]
        return [after - before for before, after in itertools.pairwise(so_far)]

    def stop(self, cut: str) -> None:
        """End the search with what it has; `cut` says why."""
        if not self.is_over:
            self.cuts.add(cut)
        self._is_seeded = True
        self._open.clear()

    def next_wave(self) -> Wave | None:
        """What to score next; None once the search is over."""
        self._wave, self._parents, self._tokens = [], [], []
        while not self._wave:
            if not self._is_seeded:
                self._grow_seeds()
            elif self.is_over:
                return None
            else:
                self._grow_beam()
        return Wave(np.array(self._parents, np.int32), np.array(self._tokens, np.int32))

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Take the answer to the last wave."""
        answers: list[float] = log_prob.tolist()
        best_before = self.found[0].total if self.found else -np.inf
        for growth in self._wave:
            self._learn(growth, answers)
        self.num_nodes += len(answers)
        self._run.update(self._parents)
        self.found.sort(key=lambda one: (-one.total, one.prefix))
        if self.found and self.found[0].total > best_before:
            self._best_at = self.num_run
        if not self._is_seeded:
            self._is_seeded = True
            self._guess()
        for growth in self._wave:
            self._queue(growth)
        self._keep_to_limits()

    def _grow_seeds(self) -> None:
        """Grow every prefix of the sequences that are best by the lattice alone."""
        limits = self._limits
        ends = self._lattice.best(max(limits.seeds, limits.num_best), limits.max_arcs)
        grown: set[int] = set()
        for end in ends.tolist():
            for prefix in itertools.takewhile(self._fits, self.chain(end)):
                if prefix not in grown:
                    grown.add(prefix)
                    self._grow(prefix)
        if not self._wave:  # not one of them fits
            self._grow(0)

    def _grow_beam(self) -> None:
        """Grow the most promising prefix of every length."""
        floor = self._floor()
        for heap in list(self._open.values()):
            while heap:
                expected, prefix = heapq.heappop(heap)
                if self._can_win(prefix, floor) and self._is_expected(-expected, floor):
                    if self._fits(prefix):
                        self._grow(prefix)
                    break

    def _floor(self) -> float:
        """The total that is to be beaten."""
        wanted = self._limits.num_best
        return self.found[wanted - 1].total if len(self.found) >= wanted else -np.inf

    def _can_win(self, prefix: int, floor: float) -> bool:
        bound = float(self._lattice.bounds(np.array([prefix], np.int32))[0])
        if self._lm_scale < 0:
            return bound > -np.inf  # it was not merged into another since
        log_prob = self._prefixes[prefix].log_prob
        return bound + self._lm_scale * (log_prob + ROUNDING_NATS) > floor

    def _is_expected(self, expected: float, floor: float) -> bool:
        beam = self._limits.beam
        if beam is None or expected >= floor - beam:
            return True
        self.cuts.add("beam")
        return False

    def _fits(self, prefix: int) -> bool:
        """Whether the LM can be asked for what comes after a prefix, `</s>` at least."""
        known = self._prefixes[prefix]
        if known.num_tokens + len(known.rest) <= self._deepest:
            return True
        self.cuts.add("max_tokens")
        return False

    def chain(self, prefix: int) -> list[int]:
        """A prefix and all it extends, the empty one first."""
        chain = [prefix]
        while chain[-1]:
            chain.append(self._lattice.parent(chain[-1]))
        return chain[::-1]

    def _grow(self, prefix: int) -> None:
        """Ask for the rest of a prefix, for its end, and for the first pieces of its children."""
        self._grown.add(prefix)
        known = self._prefixes[prefix]
        start = len(self._tokens)
        for piece in known.rest:
            known.node = self._ask(known.node, piece)
        known.num_tokens += len(known.rest)
        rest = range(start, len(self._tokens))
        known.rest = ()
        end_score, children, words = self._lattice.grow(prefix)
        if self._is_seeded and self._lm_scale >= 0:
            most = self._lattice.bounds(children) + self._lm_scale * known.log_prob
            can_win = most + self._lm_scale * ROUNDING_NATS > self._floor()
            children, words = children[can_win], words[can_win]
        ends, end = end_score > -np.inf, None
        if ends and self._final:
            end = len(self._tokens)
            self._ask(known.node, BOUNDARY_ID)
        place: dict[int, int] = {}  # of a first piece: several words can share it
        asked: list[int | None] = []
        for child, word in zip(children.tolist(), words.tolist(), strict=True):
            pieces = self._spoken.pieces[word]
            if not pieces:
                asked.append(None)
                node = known.node
            else:
                if pieces[0] not in place:
                    place[pieces[0]] = len(self._tokens)
                    self._ask(known.node, pieces[0])
                asked.append(place[pieces[0]])
                node = self._next_node - len(self._tokens) + place[pieces[0]]
            self._prefixes[child] = _Prefix(
                node, known.num_tokens + len(pieces[:1]), 0.0, pieces[1:], known.num_words + 1
            )
        self._wave.append(_Growth(prefix, rest, ends, end, children, asked))

    def _ask(self, parent: int, token: int) -> int:
        self._parents.append(parent)
        self._tokens.append(token)
        self._next_node += 1
        return self._next_node - 1

    def _learn(self, growth: _Growth, answers: list[float]) -> None:
        known = self._prefixes[growth.prefix]
        known.log_prob += sum(answers[at] for at in growth.rest)
        if growth.ends:
            log_prob = known.log_prob + (0.0 if growth.end is None else answers[growth.end])
            total = self._lattice.end_score(growth.prefix) + self._lm_scale * log_prob
            self.found.append(FoundSequence(growth.prefix, total, log_prob))
        for child, at in zip(growth.children.tolist(), growth.asked, strict=True):
            nats = 0.0 if at is None else answers[at]
            self._prefixes[child].log_prob = known.log_prob + nats
            self._observe(child, nats)

    def _observe(self, child: int, nats: float) -> None:
        """Remember what a word cost."""
        word = self._lattice.word(child)
        self._word_nats[word] += nats - _LATER_PIECE_NATS * len(self._spoken.pieces[word][1:])
        self._word_count[word] += 1

    def _guess(self) -> None:
        """Expect of every word the mean of what it has cost."""
        mean = self._word_nats / np.maximum(self._word_count, 1)
        self._lattice.expect(self._lm_scale * np.where(self._word_count, mean, -_NEW_WORD_NATS))

    def _queue(self, growth: _Growth) -> None:
        """Take up the children of a prefix that has grown."""
        children = growth.children
        known = [self._prefixes[child] for child in children.tolist()]
        lm = self._lm_scale * np.array([one.log_prob for one in known])
        rest = self._lm_scale * _LATER_PIECE_NATS * np.array([len(one.rest) for one in known])
        order = self._limits.order
        if order is not None and self._lattice.merge(children, lm, order):
            self.cuts.add("order")
        expected = self._lattice.expected(children) + lm - rest
        heap = self._open.setdefault(self._prefixes[growth.prefix].num_words + 1, [])
        for child, value in zip(children.tolist(), expected.tolist(), strict=True):
            if value > -np.inf and child not in self._grown:
                heapq.heappush(heap, (-value, child))

    def _keep_to_limits(self) -> None:
        limits = self._limits
        if limits.patience is not None and self.num_run - self._best_at > limits.patience:
            self.stop("patience")
        if self.num_run >= limits.max_lm_steps:
            self.stop("max_lm_steps")
        if self.num_arcs >= limits.max_arcs:
            self.stop("max_arcs")
