"""The best word sequences of a lattice under its own scores and an LM's, wave by wave.

Sequences grow word by word (csrc/word_prefixes.h); a prefix is as good as

    max over its states of (score to there + score from there to the end) + lm_scale * LM(prefix)

plus what the LM will say of the rest: 0 is a bound, and what single words of this lattice have
cost so far is a guess. The guess gives the order. The bound says what can be left out: once none is
above the totals found, these are the best there are, and the search is exact. A wave is one forward
pass, over the most promising prefix of every length: each wave moves a whole beam one word on, and
from the last one a sequence is complete. The first wave takes the lattice's own best sequences to
their ends, so that there is an answer at once. Where several sequences are wanted the best is
searched for first, exactly as if it alone were, and the others then: to ask for more never makes
the best worse. Knows no model: it says what to score, and is told.

After Kaldi's pruned composition (Xu et al., "A pruned RNNLM lattice-rescoring algorithm for
automatic speech recognition", ICASSP 2018): forward score plus lattice score to the end plus a
correction for the new LM, and histories merged by their last words. The work is native
(csrc/lattice_search.h); this file gives it words and names.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import NoPathError
from quantized_lm.lattice.limits import ENDLESS, SearchLimits
from quantized_lm.lattice.spoken import SpokenLattice
from quantized_lm.ops import _cpu
from quantized_lm.pruning import Wave

Ids = NDArray[np.int32]
# As csrc/lattice_search.h numbers them.
_CUTS = {1: "beam", 2: "order", 4: "patience", 8: "max_lm_steps", 16: "max_arcs", 32: "max_tokens"}


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

    Raises:
        NoPathError: the lattice has no path whose score is finite.
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
        self._spoken = spoken
        self._limits = limits
        self._stopped_by: str | None = None
        self._search = _cpu.LatticeSearch(
            spoken.src,
            spoken.dst,
            spoken.word,
            spoken.score,
            np.cumsum([0, *map(len, spoken.pieces)], dtype=np.int32),
            np.array([*itertools.chain(*spoken.pieces)], np.int32),
            _native(limits),
            _cpu.Reading(lm_scale, num_context, num_context + max_tokens, final),
        )
        self._lattice = self._search.lattice
        if self._lattice.bounds(np.zeros(1, np.int32))[0] == -np.inf:
            raise NoPathError("no path of the lattice has a finite score", pointer="/arcs")

    @property
    def found(self) -> list[FoundSequence]:
        """The sequences that were scored to their end, best first."""
        columns = (column.tolist() for column in self._search.found())
        return [FoundSequence(*row) for row in zip(*columns, strict=True)]

    @property
    def cuts(self) -> set[str]:
        """What kept the search from being exact.

        Names of `SearchLimits`, "max_tokens", and what `stop` was given.
        """
        found = {name for bit, name in _CUTS.items() if self._search.cuts & bit}
        return found if self._stopped_by is None else {*found, self._stopped_by}

    @property
    def num_run(self) -> int:
        """LM steps: nodes run through the network."""
        return self._search.num_run

    @property
    def num_nodes(self) -> int:
        """Log-probabilities asked for."""
        return self._search.num_nodes

    @property
    def num_arcs(self) -> int:
        """Arcs followed."""
        return self._lattice.num_followed

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to score."""
        return self._search.is_over

    @property
    def is_exact(self) -> bool:
        """Whether no sequence of the lattice can be better than those found."""
        return self.is_over and not self.cuts

    @property
    def first_seed(self) -> int | None:
        """The prefix that is best by the lattice alone; None where the search has not begun."""
        return self._search.first_seed

    def words(self, prefix: int) -> list[str]:
        """Those of a prefix."""
        return [self._spoken.words[number] for number in self._lattice.words(prefix).tolist()]

    def best_by_lattice(self, count: int) -> list[FoundSequence]:
        """1 to `count` sequences, best first, by the lattice alone: the LM counts nothing.

        Of a search that has begun, those that were merged into others are missing.
        """
        ends = self._lattice.best(count, self.num_arcs + self._limits.max_arcs).tolist()
        ends = ends or self._lattice.best(1, ENDLESS).tolist()
        scores = [(end, self._lattice.end_score(end)) for end in ends]
        return [FoundSequence(end, score, np.nan) for end, score in scores if score > -np.inf]

    def path(self, prefix: int) -> Ids:
        """Numbers of the spoken lattice's arcs on the best path of a complete prefix."""
        return self._lattice.path(prefix)

    def log_probs(self, prefix: int) -> list[float]:
        """The LM's score of each word of a prefix that was grown, nats."""
        so_far = [self._search.log_prob(one) for one in self.chain(prefix)]
        return [after - before for before, after in itertools.pairwise(so_far)]

    def chain(self, prefix: int) -> list[int]:
        """A prefix and all it extends, the empty one first."""
        chain = [prefix]
        while chain[-1]:
            chain.append(self._lattice.parent(chain[-1]))
        return chain[::-1]

    def stop(self, cut: str) -> None:
        """End the search with what it has; `cut` says why."""
        if not self.is_over:
            self._stopped_by = cut
        self._search.stop()

    def next_wave(self) -> Wave | None:
        """What to score next; None once the search is over."""
        asked = self._search.next_wave()
        return None if asked is None else Wave(*asked)

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Take the answer to the last wave."""
        self._search.learn(log_prob)


def _native(limits: SearchLimits) -> _cpu.SearchLimits:
    return _cpu.SearchLimits(
        num_best=limits.num_best,
        seeds=limits.seeds,
        order=limits.order or 0,
        beam=math.inf if limits.beam is None else limits.beam,
        patience=limits.patience or ENDLESS,
        max_lm_steps=limits.max_lm_steps,
        max_arcs=limits.max_arcs,
    )
