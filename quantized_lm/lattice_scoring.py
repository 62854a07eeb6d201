"""From a lattice to its best word sequences under a LM: what `scoring.py` is for n-best lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantized_lm.combine import Weights
from quantized_lm.errors import InputError, NoPathError
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.rescored import Weighing, rescored_lattice
from quantized_lm.lattice.search import FoundSequence, LatticeSearch
from quantized_lm.lattice.spoken import ArcWeights, SpokenLattice, speak
from quantized_lm.prefix_cache import Reused
from quantized_lm.pruning import Wave
from quantized_lm.scoring import TextScorer, context_room
from quantized_lm.waves import run_all

BUDGETS = (
    "deadline",
    "max_arcs",
    "max_lm_steps",
    "max_tokens",
    "overloaded",
)  # cuts that nobody wished for


@dataclass(frozen=True, eq=False)
class LatticeRequest:
    """A lattice to rescore.

    Attributes:
        weights: of what is on the arcs. lm_scale: of the LM's log-probability.
        limits: of the search.
        silence: symbols that are no words, besides the usual ones.
        context: earlier texts, oldest first; the model sees as much of the newest as fits half of
            what it takes.
        final: whether `</s>` is scored.
    """

    lattice: Lattice
    weights: ArcWeights
    lm_scale: float
    limits: SearchLimits = field(default_factory=SearchLimits)
    silence: frozenset[str] = frozenset()
    context: tuple[str, ...] = ()
    final: bool = True


@dataclass(frozen=True, eq=False)
class LatticeHypothesis:
    """A word sequence of the lattice with every score.

    Attributes:
        words: in order.
        total: nats: am_scale * am + graph_scale * graph + lm_scale * lm + bonuses; without the LM
            where it was not asked.
        am, graph: nats, sums over the arcs of its best path, not scaled.
        lm: nats, log P(words, `</s>` when final); NaN where the LM was not asked.
        word_lm: of each word; `</s>` belongs to none.
        num_tokens: of the LM, `</s>` not counted. num_words: as the LM's text rules count.
        oov: its words with an unknown token.
        arcs: of the lattice, on its best path. word_arcs: of each word.
    """

    words: tuple[str, ...]
    total: float
    am: float
    graph: float
    lm: float
    word_lm: tuple[float, ...]
    num_tokens: int
    num_words: int
    oov: tuple[str, ...]
    arcs: NDArray[np.int32]
    word_arcs: NDArray[np.int32]

    @property
    def text(self) -> str:
        """Words with spaces between."""
        return " ".join(self.words)


@dataclass(frozen=True)
class LatticeUsage:
    """What a lattice cost.

    Attributes:
        arcs, states: of the lattice. arcs_followed: by the search, repeats counted.
        lm_steps: nodes run through the network, those of the context included. tree_nodes:
            log-probabilities computed.
        cache_hits: nodes of context and sequences found in a tree kept from an earlier request.
        sequences: word sequences scored to their end. waves: rounds of the search.
    """

    arcs: int
    states: int
    arcs_followed: int
    lm_steps: int
    tree_nodes: int
    cache_hits: int
    sequences: int
    waves: int


@dataclass(frozen=True, eq=False)
class LatticeScores:
    """What a search came to.

    Attributes:
        prepared: what was searched.
        search: in the state in which it ended; one that was not begun where the lattice's own best
            is longer than the model takes.
        is_exact: whether no sequence of the lattice can be better than the wanted ones.
        cuts: what kept it from that, in alphabetical order; see `LatticeSearch`.
        usage: what it cost.
    """

    prepared: PreparedLattice
    search: LatticeSearch
    is_exact: bool
    cuts: tuple[str, ...]
    usage: LatticeUsage

    @cached_property
    def is_scored(self) -> bool:
        """Whether the LM had a say: not if no sequence came to its end in time, or was short.

        Nor if the lattice's own best is too long: the others would only win by what they leave out.
        """
        return bool(self.search.found)

    @property
    def degraded(self) -> tuple[str, ...]:
        """The budgets among the cuts; the others were chosen."""
        return tuple(cut for cut in self.cuts if cut in BUDGETS)

    @cached_property
    def sequences(self) -> Sequence[FoundSequence]:
        """All that were scored to their ends, best first; if none were, those of the lattice."""
        limits = self.prepared.request.limits
        return self.search.found or self.search.best_by_lattice(limits.num_best)

    @cached_property
    def first_pass(self) -> int:
        """Which of `sequences` is the best by the lattice and the bonuses, without the LM.

        Where the search met too many arcs to find that one, the best of those that it has.
        """
        prefixes = [one.prefix for one in self.sequences]
        if self.search.first_seed in prefixes:
            return prefixes.index(self.search.first_seed)
        return int(np.argmax(self.by_lattice))

    @cached_property
    def by_lattice(self) -> NDArray[np.float64]:
        """(F,) nats of `sequences` by the lattice and the bonuses, without the LM."""
        totals = np.array([one.total for one in self.sequences])
        if not self.is_scored:
            return totals
        return totals - self.prepared.request.lm_scale * np.array(
            [one.log_prob for one in self.sequences]
        )

    @cached_property
    def hypotheses(self) -> tuple[LatticeHypothesis, ...]:
        """The wanted ones, best first: fewer where there are not as many."""
        wanted = self.prepared.request.limits.num_best
        return tuple(self.detail(one) for one in self.sequences[:wanted])

    def posteriors(self, scale: float = 1.0) -> NDArray[np.float64]:
        """(F,) softmax(scale * total) over `sequences`."""
        totals = np.array([one.total for one in self.sequences])
        powers = np.exp(scale * (totals - totals.max(initial=-np.inf)))
        return np.asarray(powers / powers.sum(), np.float64)

    def rescored(self, most: int = 1000) -> Lattice:
        """The lattice of the best `most` sequences, with all scores weighed; see `rescored.py`."""
        prepared = self.prepared
        weighing = Weighing(
            prepared.request.weights, prepared.request.lm_scale if self.is_scored else 0.0
        )
        return rescored_lattice(
            prepared.request.lattice, prepared.spoken, self.search, self.sequences[:most], weighing
        )

    def detail(self, found: FoundSequence) -> LatticeHypothesis:
        """One of `sequences` with every score."""
        prepared, spoken = self.prepared, self.prepared.spoken
        path = self.search.path(found.prefix)
        numbers = spoken.word[path]
        arcs = spoken.arc[path]
        lattice_arcs = arcs[np.diff(arcs, prepend=-1) != 0]
        lattice = prepared.request.lattice
        spoken_numbers = numbers[numbers > 0].tolist()
        return LatticeHypothesis(
            words=tuple(spoken.words[number] for number in spoken_numbers),
            total=found.total,
            am=float(lattice.am[lattice_arcs].sum()),
            graph=float(lattice.graph[lattice_arcs].sum()),
            lm=found.log_prob,
            word_lm=tuple(self.search.log_probs(found.prefix)) if self.is_scored else (),
            num_tokens=sum(len(spoken.pieces[number]) for number in spoken_numbers),
            num_words=sum(spoken.num_words[number] for number in spoken_numbers),
            oov=tuple(spoken.words[n] for n in spoken_numbers if n in spoken.oov),
            arcs=lattice_arcs,
            word_arcs=arcs[numbers > 0],
        )


@dataclass(frozen=True, eq=False)
class PreparedLattice:
    """A request made ready for the network.

    Attributes:
        context: token ids. max_tokens: of a sequence, `</s>` not counted.
    """

    request: LatticeRequest
    spoken: SpokenLattice
    context: Sequence[int]
    max_tokens: int

    @property
    def cost_tokens(self) -> int:
        """Rows of the largest wave, about: the seeds, which are scored together."""
        limits = self.request.limits
        longest = min(int(self.spoken.src[-1]) + 1, self.max_tokens)
        return min(max(limits.seeds, limits.num_best) * longest, limits.max_lm_steps)

    @property
    def recurs(self) -> bool:
        """Whether it has a context, or is a lattice of unfinished sequences."""
        return bool(self.context) or not self.request.final

    def begin(self) -> LatticeScoring:
        """Start to search it."""
        return LatticeScoring(self)


class LatticeScoring:
    """A lattice on its way through the network."""

    def __init__(self, prepared: PreparedLattice) -> None:
        self._prepared = prepared
        self._waves = 0
        self._reused = Reused()
        self._search = _new_search(prepared)

    def next_wave(self) -> Wave | None:
        """What to score next; None once the search is over."""
        return self._search.next_wave()

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Take the answer to the last wave."""
        self._waves += 1
        self._search.learn(log_prob)

    def stop(self, cut: str) -> None:
        """End the search with the best that was found."""
        self._search.stop(cut)

    def reuse(self, reused: Reused) -> None:
        """Be told what of it was known from earlier work."""
        self._reused = reused

    def result(self) -> LatticeScores:
        """What was found."""
        search, lattice = self._search, self._prepared.request.lattice
        usage = LatticeUsage(
            arcs=lattice.num_arcs,
            states=lattice.num_states,
            arcs_followed=search.num_arcs,
            lm_steps=self._num_run(),
            tree_nodes=search.num_nodes - self._reused.log_probs,
            cache_hits=self._reused.nodes,
            sequences=len(search.found),
            waves=self._waves,
        )
        cuts, is_exact = tuple(sorted(search.cuts)), search.is_exact
        if "max_tokens" in cuts and search.first_seed not in [one.prefix for one in search.found]:
            search = _new_search(self._prepared)  # in which nothing was merged, and nothing scored
        return LatticeScores(self._prepared, search, is_exact, cuts, usage)

    def _num_run(self) -> int:
        if not self._search.num_run:
            return 0  # and so neither was the context
        return self._search.num_run + len(self._prepared.context) - self._reused.run_nodes


def _new_search(prepared: PreparedLattice) -> LatticeSearch:
    request = prepared.request
    return LatticeSearch(
        prepared.spoken,
        lm_scale=request.lm_scale,
        limits=request.limits,
        num_context=len(prepared.context),
        max_tokens=prepared.max_tokens,
        final=request.final,
    )


def arc_weights(weights: Weights) -> ArcWeights:
    """Weights as a lattice's sequences are ranked: by am, graph, the LM, words and tokens alone.

    Raises:
        InputError: another one is set; the pointer is relative to the weights.
    """
    neutral = Weights()
    for name in ("char_bonus", "bias", "extra", "length_norm", "mode"):
        value, needed = getattr(weights, name), getattr(neutral, name)
        if any(value.values()) if isinstance(value, Mapping) else value != needed:
            raise InputError(
                f"{name} is {value!r}; need {needed!r}, as a lattice's sequences are ranked by am, "
                "graph, LM, words and tokens alone",
                pointer=f"/{name}",
            )
    return ArcWeights(
        weights.am_scale, weights.graph_scale, weights.word_bonus, weights.token_bonus
    )


def prepare_lattice(request: LatticeRequest, scorer: TextScorer) -> PreparedLattice:
    """Tokenize a lattice's words and its context.

    Raises:
        LatticeError: it has ids for words and no symbol table.
        NoPathError: it is empty, or no path has a finite score.
    """
    if not request.lattice.num_arcs:
        raise NoPathError("the lattice is empty; need at least one path", pointer="/arcs")
    spoken = speak(request.lattice, scorer.tokenizer, request.weights, silence=request.silence)
    room = context_room(scorer.model.max_tokens)
    context = scorer.tokenizer.context_ids(request.context, room=room)
    longest = scorer.model.max_tokens - len(context) - 1
    prepared = PreparedLattice(request, spoken, context, longest)
    if not np.isfinite(spoken.score).all():
        prepared.begin()  # which refuses a lattice without a path
    return prepared


def score_lattices(requests: Sequence[LatticeRequest], scorer: TextScorer) -> list[LatticeScores]:
    """Prepare and search in one go; all lattices share forward passes.

    Raises:
        InputError: as `prepare_lattice`.
    """
    return run_all([prepare_lattice(request, scorer) for request in requests], scorer.model)
