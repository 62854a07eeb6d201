"""Work on its way through a LM: what each piece wants scored next goes into one forward pass.

Pieces end after waves of their own number, so a caller can take in new ones between two waves, and
hand out results as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantized_lm.models.base import LanguageModel
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

    def begin(self) -> Scoring[Result_co]:
        """Start it, from the beginning."""
        ...


class Running(Generic[Result]):
    """A piece of work and how far it has come.

    Args:
        cut: why it has to stop before its first wave; None if it has not.

    Attributes:
        state: the model's. wave: what to score next; None once it is over.
    """

    def __init__(self, work: Work[Result], model: LanguageModel, *, cut: str | None = None) -> None:
        self._scoring = work.begin()
        if cut is not None:
            self._scoring.stop(cut)
        self.state = model.new_state(work.context)
        self.wave = self._scoring.next_wave()

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
        self._scoring.learn(log_prob)
        self.wave = self._scoring.next_wave()

    def stop(self, cut: str) -> None:
        """Ask it to make do with what it has."""
        self._scoring.stop(cut)
        self.wave = self._scoring.next_wave()

    def result(self) -> Result:
        """What it came to, once it is over."""
        return self._scoring.result()


def forward(
    running: Sequence[Running[Result]], model: LanguageModel
) -> list[tuple[Running[Result], NDArray[np.float32]]]:
    """One forward pass: every piece that is not over, and what it has to learn."""
    waves = [(one, one.wave) for one in running if one.wave is not None]
    answers = model.extend(
        [one.state for one, _ in waves],
        [wave.parents for _, wave in waves],
        [wave.tokens for _, wave in waves],
    )
    return [(one, log_prob) for (one, _), log_prob in zip(waves, answers, strict=True)]


def advance(running: Sequence[Running[Result]], model: LanguageModel) -> None:
    """One forward pass for every piece that is not over; each gets what it would get alone."""
    for one, log_prob in forward(running, model):
        one.learn(log_prob)


def run_all(work: Sequence[Work[Result]], model: LanguageModel) -> list[Result]:
    """Run several pieces together to their ends."""
    running = [Running(one, model) for one in work]
    while any(not one.is_over for one in running):
        advance(running, model)
    return [one.result() for one in running]
