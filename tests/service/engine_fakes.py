"""An engine that is stepped by hand, on a clock that only its models move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.prefix_cache import Reused
from quantized_lm.pruning import Wave
from quantized_lm.waves import Scoring
from service.admission import QueueLimits
from service.jobs import Job
from service.metrics import Metrics
from service.scheduler import Scheduler


@dataclass
class Clock:
    """Seconds that stand still until somebody moves them."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


@dataclass
class Doubling:
    """Work that has a number doubled, in one wave or more; it may fail on the way.

    Attributes:
        fails_in: the method that raises.
        can_stop: whether it has a result once it is stopped.
        stops: what it was stopped for.
    """

    number: int
    waves: int = 1
    cost_tokens: int = 1
    fails_in: str = ""
    can_stop: bool = False
    context: Sequence[int] = ()
    recurs: bool = False
    stops: list[str] = field(default_factory=list)

    def begin(self) -> Scoring[int]:
        """Start it."""
        self.try_to("begin")
        return DoublingScoring(self, self.waves)

    def try_to(self, method: str) -> None:
        """Fail, if it is this method's turn."""
        if method == self.fails_in:
            raise KeyError(method)


@dataclass
class DoublingScoring:
    """The number on its way."""

    work: Doubling
    left: int
    answer: int = 0

    def next_wave(self) -> Wave | None:
        """As many nodes as it costs, each with the number as its token."""
        self.work.try_to("next_wave")
        if not self.left:
            return None
        tokens = np.full(max(self.work.cost_tokens, 1), self.work.number, np.int32)
        return Wave(np.zeros_like(tokens), tokens)

    def learn(self, log_prob: NDArray[np.float32]) -> None:
        """Count the wave."""
        self.work.try_to("learn")
        self.left -= 1
        self.answer = int(log_prob[0])

    def reuse(self, reused: Reused) -> None:
        """Nothing is."""

    def stop(self, cut: str) -> None:
        """Be over, if it can."""
        self.work.stops.append(cut)
        self.left = 0 if self.work.can_stop else self.left

    def result(self) -> int:
        """Twice the number."""
        self.work.try_to("result")
        return self.answer


@dataclass(eq=False)
class DoublingModel:
    """Doubles numbers; -1 fails, and -2 loses an answer. Both what is served and its network.

    Attributes:
        clock: moved by every pass, by as much as `seconds` says of its nodes and pieces.
        passes: the numbers in each pass, of all models that share the list, with the model's name.
        during: what happens in each pass, by its number.
        ample_nodes: a pass is of calls with no more pieces than it takes to have so many.
    """

    name: str = "a"
    clock: Clock = field(default_factory=Clock)
    seconds: Callable[[int, int], float] = lambda _nodes, _pieces: 0.0
    passes: list[tuple[str, list[int]]] = field(default_factory=list)
    during: dict[int, Callable[[], object]] = field(default_factory=dict)
    ample_nodes: int | None = None
    vocab_size: int = 8
    max_tokens: int = 8

    @property
    def model(self) -> Any:
        """Itself: a LanguageModel as far as the engine uses one."""
        return self

    def new_state(self, context: Sequence[int] = ()) -> Sequence[int]:
        """Nothing that counts."""
        return context

    def extend(
        self,
        states: Sequence[object],
        parents: Sequence[NDArray[np.int32]],
        tokens: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Twice each token."""
        assert len(states) == len(parents)
        numbers = [int(token[0]) for token in tokens]
        self.passes.append((self.name, numbers))
        self.clock.now_s += self.seconds(sum(map(len, tokens)), len(tokens))
        self.during.pop(len(self.passes), int)()
        if -1 in numbers:
            raise ValueError("minus one")
        return [2.0 * token.astype(np.float32) for token in tokens if token[0] != -2]


def engine(
    clock: Clock, *, budget: int = 10, max_requests: int = 256, max_tokens: int = 10_000
) -> Scheduler:
    """A scheduler without a thread."""
    limits = QueueLimits(budget, max_requests, max_tokens)
    return Scheduler(limits=limits, metrics=Metrics(), clock=clock)


def job(
    model: DoublingModel, number: int, cost_tokens: int = 1, *, waves: int = 1, by_s: float = 1e3
) -> Job[int]:
    """A number to double by a time."""
    return Job(model, Doubling(number, waves, cost_tokens), cost_tokens, by_s)


def search(
    model: DoublingModel, number: int, cost_tokens: int = 1, *, waves: int = 99, by_s: float = 1e3
) -> Job[int]:
    """The same of work that can be stopped at any time."""
    work = Doubling(number, waves, cost_tokens, can_stop=True)
    return Job(model, work, cost_tokens, by_s, is_anytime=True)


def run(scheduler: Scheduler) -> None:
    """Step until nothing is left to do, and not once more: the engine's thread waits then."""
    for _ in range(10_000):
        if not (scheduler._queue or scheduler._started):
            return
        scheduler.step()
    raise AssertionError("the engine finds no end")


def sample(scheduler_metrics: Metrics, name: str, **labels: str) -> float:
    """One number of the exposition; NaN if it is not there."""
    value = scheduler_metrics.registry.get_sample_value(name, labels)
    return math.nan if value is None else value
