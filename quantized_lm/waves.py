"""Work on its way through a LM: what each piece wants scored next goes into one forward pass.

Pieces end after waves of their own number, so a caller can take in new ones between two waves, and
hand out results as they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantized_lm.models.base import LanguageModel, Satiable
from quantized_lm.prefix_cache import Growth, PrefixCache, Reused
from quantized_lm.pruning import Wave

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Scoring(Protocol[Result_co]):
    """A piece of work under way: says what to score, wave by wave, and is told."""

    def next_wave(self) -> Wave | None:
        """What to score next; None once all that is wanted is known."""
        ...

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Take the answer to the last wave."""
        ...

    def stop(self, cut: str) -> None:
        """Make do with what is known, where that is possible; `cut` says why."""
        ...

    def reuse(self, reused: Reused) -> None:
        """Be told, at the end, what of it was known from earlier work."""
        ...

    def result(self) -> Result_co:
        """What it came to; there is no next wave."""
        ...


class Work(Protocol[Result_co]):
    """A piece of work for a LM."""

    @property
    def context(self) -> Sequence[int]:
        """Token ids that the model reads first."""
        ...

    @property
    def cost_tokens(self) -> int:
        """Nodes that one wave of it may hold: what a batch's token budget is spent on."""
        ...

    @property
    def recurs(self) -> bool:
        """Whether later work is likely to begin as this does."""
        ...

    def begin(self) -> Scoring[Result_co]:
        """Start it, from the beginning."""
        ...


class Running(Generic[Result]):
    """A piece of work and how far it has come.

    Args:
        cache: trees of the model; work that recurs starts from them and leaves its own.

    Attributes:
        state: the model's. wave: what to score next; None once it is over.
    """

    def __init__(
        self, work: Work[Result], model: LanguageModel, *, cache: PrefixCache | None = None
    ) -> None:
        self._scoring = work.begin()
        wave = self._scoring.next_wave()
        self._cache = cache if work.recurs else None
        self._growth: Growth | None = None
        if self._cache is None:
            self.state = model.new_state(work.context)
        else:
            self._growth = self._cache.begin(work.context, wave)
            self.state = self._growth.tree.state
        self.wave = self._unknown(wave)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to score."""
        return self.wave is None

    @property
    def num_nodes(self) -> int:
        """Log-probabilities that the next forward pass computes for it."""
        return 0 if self.wave is None else len(self.wave.tokens)

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Take the answer to the last wave, and see what comes next."""
        self._scoring.learn(log_prob if self._growth is None else self._growth.learn(log_prob))
        self.wave = self._unknown(self._scoring.next_wave())

    def stop(self, cut: str) -> None:
        """Ask it to make do with what it has."""
        self._scoring.stop(cut)
        self.wave = self._unknown(self._scoring.next_wave())

    def result(self) -> Result:
        """What it came to, once it is over; asked for once."""
        if self._cache is not None and self._growth is not None:
            self._scoring.reuse(self._growth.reused)
            self._cache.keep(self._growth)
        return self._scoring.result()

    def _unknown(self, wave: Wave | None) -> Wave | None:
        """What of a wave, and of those after it, has to be scored."""
        if self._growth is None:
            return wave
        while wave is not None:
            unknown = self._growth.want(wave)
            if unknown is not None:
                return unknown
            self._scoring.learn(self._growth.learn(np.zeros(0, np.float32)))
            wave = self._scoring.next_wave()
        return None


def forward(
    running: Sequence[Running[Result]], model: LanguageModel
) -> Iterator[tuple[Running[Result], NDArray[np.float32]]]:
    """One forward pass: every piece that is not over, and what it has to learn, in order.

    An answer comes as soon as it costs the pass no time to have it before the others.
    """
    waves = [(one, one.wave) for one in running if one.wave is not None]
    for some in _calls(waves, model.ample_nodes if isinstance(model, Satiable) else None):
        answers = model.extend(
            [one.state for one, _ in some],
            [wave.parents for _, wave in some],
            [wave.tokens for _, wave in some],
        )
        yield from list(zip((one for one, _ in some), answers, strict=True))


def _calls(
    waves: Sequence[tuple[Running[Result], Wave]], ample_nodes: int | None
) -> Iterator[list[tuple[Running[Result], Wave]]]:
    """Waves by calls of the model: all in one, or as soon as they have nodes enough."""
    call: list[tuple[Running[Result], Wave]] = []
    num_nodes = 0
    for one, wave in waves:
        call.append((one, wave))
        num_nodes += len(wave.tokens)
        if ample_nodes is not None and num_nodes >= ample_nodes:
            yield call
            call, num_nodes = [], 0
    if call:
        yield call


def advance(running: Sequence[Running[Result]], model: LanguageModel) -> None:
    """One forward pass for every piece that is not over; each gets what it would get alone."""
    for one, log_prob in forward(running, model):
        one.learn(log_prob)


def cut_short(work: Work[Result], cut: str) -> Result:
    """What work that can stop at any time comes to without a model; `cut` says why."""
    scoring = work.begin()
    scoring.stop(cut)
    scoring.next_wave()
    return scoring.result()


def run_all(work: Sequence[Work[Result]], model: LanguageModel) -> list[Result]:
    """Run several pieces together to their ends."""
    running = [Running(one, model) for one in work]
    while any(not one.is_over for one in running):
        advance(running, model)
    return [one.result() for one in running]
