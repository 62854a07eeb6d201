"""Lattices against n-best lists: word errors, LM steps and time of both, with one LM and weights.

The lists are the lattice's own best sequences, and the decoder's list where there is one. Weights
are tuned on one half of the utterances and used on the other, and the other way round, so that
every utterance is reported once, with weights that have not seen it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantized_lm.artifact import LoadedModel
from quantized_lm.errors import DataError
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice.spoken import ArcWeights, speak
from quantized_lm.lattice_scoring import LatticeRequest, score_lattices
from quantized_lm.ops._cpu import WordPrefixes
from quantized_lm.scoring import ScoreRequest, score_lists
from quantized_lm.tuning import TuningSet, tune
from quantized_lm.wer import error_counts

Floats = NDArray[np.float64]
NAMES = ("am", "lm", "words")
DECODER_LIST = "decoder's list"
LATTICE = "lattice"
_ROUNDS = 4  # of search and tuning: sequences that new weights prefer have to be found first


@dataclass(frozen=True, eq=False)
class Spoken:
    """One utterance.

    Attributes:
        texts, am: the decoder's list and its acoustic scores, nats; may be empty.
    """

    id: str
    reference: str
    lattice: Lattice
    texts: tuple[str, ...]
    am: tuple[float, ...]


@dataclass(frozen=True)
class LatticeWeights:
    """What am + lm_scale * lm + word_bonus * words counts for."""

    lm_scale: float
    word_bonus: float


@dataclass(frozen=True, eq=False)
class Candidates:
    """Word sequences of one utterance with their scores, and what they cost.

    Attributes:
        features: (H, 3) float64: am and lm in nats, and words.
        lm_steps: nodes run. tree_nodes: log-probabilities computed. seconds: all of it.
    """

    texts: tuple[str, ...]
    features: Floats
    lm_steps: int
    tree_nodes: int
    seconds: float

    def best(self, weights: LatticeWeights) -> str:
        """The text with the highest total."""
        total = self.features @ (1.0, weights.lm_scale, weights.word_bonus)
        return self.texts[int(np.argmax(total))]


@dataclass(frozen=True)
class SystemResult:
    """One way to rescore.

    Attributes:
        errors: of all utterances, with the weights tuned for lattices.
        own_errors: with weights tuned for this system.
        lm_steps, tree_nodes: of all utterances. seconds: median of an utterance.
        answers: with the weights tuned for lattices.
    """

    name: str
    errors: int
    own_errors: int
    lm_steps: int
    tree_nodes: int
    seconds: float
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        words: reference words. weights: of the two halves, each tuned on the other.
        first_pass_errors: of the lattices' best paths by `am` alone.
    """

    utterances: int
    words: int
    first_pass_errors: int
    weights: tuple[LatticeWeights, LatticeWeights]
    systems: tuple[SystemResult, ...]


def compare(
    spoken: Sequence[Spoken],
    loaded: LoadedModel,
    *,
    sizes: Sequence[int],
    limits: SearchLimits,
    start: LatticeWeights,
    done: Callable[[], object] = lambda: None,
) -> Comparison:
    """Rescore lattices and lists.

    Args:
        sizes: of the lattices' own lists.
        start: weights to tune from.
        done: called after every utterance of every pass: `count_passes` of each.

    Raises:
        DataError: there are fewer than two utterances.
    """
    if len(spoken) < 2:
        raise DataError(f"got {len(spoken)} utterances; need two halves to tune and to report on")
    bench = _Bench(loaded, limits, done)
    lists = _lists(bench, spoken, sizes)
    halves = (slice(0, None, 2), slice(1, None, 2))
    weights = [bench.tuned_for_lattices(spoken[half], start) for half in halves]
    of_other = (weights[1], weights[0])
    lattices: list[Candidates | None] = [None] * len(spoken)
    for half, chosen in zip(halves, of_other, strict=True):
        lattices[half] = [bench.searched(one, chosen) for one in spoken[half]]
    lists[LATTICE] = [one for one in lattices if one is not None]
    return Comparison(
        utterances=len(spoken),
        words=sum(len(one.reference.split()) for one in spoken),
        first_pass_errors=_errors(spoken, [one.texts[0] for one in lists[f"{sizes[0]}-best"]]),
        weights=of_other,
        systems=tuple(
            _result(name, spoken, candidates, start, of_other) for name, candidates in lists.items()
        ),
    )


def count_passes(sizes: Sequence[int]) -> int:
    """How often `compare` goes over the utterances."""
    return len(sizes) + _ROUNDS + 1


class _Bench:
    """One LM with limits."""

    def __init__(
        self, loaded: LoadedModel, limits: SearchLimits, done: Callable[[], object]
    ) -> None:
        self.loaded = loaded
        self.limits = limits
        self.done = done

    def searched(self, one: Spoken, weights: LatticeWeights) -> Candidates:
        """The sequences that a search of the lattice scores, the best one first."""
        started = time.perf_counter()
        request = LatticeRequest(
            one.lattice,
            ArcWeights(word_bonus=weights.word_bonus),
            weights.lm_scale,
            self.limits,
        )
        (scores,) = score_lattices([request], self.loaded)
        (best,) = scores.hypotheses
        seconds = time.perf_counter() - started
        found = [best, *(scores.detail(other) for other in scores.search.found[1:])]
        self.done()
        return Candidates(
            tuple(other.text for other in found),
            np.array([(other.am, other.lm, other.num_words) for other in found]),
            scores.usage.lm_steps,
            scores.usage.tree_nodes,
            seconds,
        )

    def listed(self, one: Spoken, size: int) -> Candidates:
        """The best sequences by the lattice's acoustic scores alone."""
        started = time.perf_counter()
        arcs = speak(one.lattice, self.loaded.tokenizer, ArcWeights())
        prefixes = WordPrefixes(arcs.src, arcs.dst, arcs.word, arcs.score)
        ends = prefixes.best(size, 2**62).tolist()
        texts = [" ".join(arcs.words[n] for n in prefixes.words(end).tolist()) for end in ends]
        am = [prefixes.end_score(end) for end in ends]
        return self._scored(texts, am, started)

    def given(self, one: Spoken) -> Candidates:
        """The decoder's list."""
        return self._scored(one.texts, one.am, time.perf_counter())

    def tuned_for_lattices(self, dev: Sequence[Spoken], start: LatticeWeights) -> LatticeWeights:
        """Of a few rounds of search and tuning on all that was found so far, the best measured."""
        pools: list[list[Candidates]] = [[] for _ in dev]
        weights, measured = start, []
        for _ in range(_ROUNDS):
            for pool, one in zip(pools, dev, strict=True):
                pool.append(self.searched(one, weights))
            measured.append((_errors(dev, [pool[-1].texts[0] for pool in pools]), weights))
            weights = _tuned(dev, [_joined(pool) for pool in pools], weights)
        return min(measured, key=lambda pair: pair[0])[1]

    def _scored(self, texts: Sequence[str], am: Sequence[float], started: float) -> Candidates:
        (scores,) = score_lists([ScoreRequest(tuple(texts))], self.loaded)
        words = scores.prepared.encoded.num_words
        self.done()
        return Candidates(
            tuple(texts),
            np.column_stack((am, scores.log_prob, words)),
            scores.usage.forward_nodes,
            scores.usage.tree_nodes,
            time.perf_counter() - started,
        )


def _lists(
    bench: _Bench, spoken: Sequence[Spoken], sizes: Sequence[int]
) -> dict[str, list[Candidates]]:
    lists = {f"{size}-best": [bench.listed(one, size) for one in spoken] for size in sizes}
    if all(one.texts for one in spoken):
        lists[DECODER_LIST] = [bench.given(one) for one in spoken]
    return lists


def _result(
    name: str,
    spoken: Sequence[Spoken],
    candidates: Sequence[Candidates],
    start: LatticeWeights,
    weights: tuple[LatticeWeights, LatticeWeights],
) -> SystemResult:
    own = weights
    if name != LATTICE:
        first, second = (_tuned(spoken[k::2], candidates[k::2], start) for k in (0, 1))
        own = (second, first)
    answers = [one.best(weights[k % 2]) for k, one in enumerate(candidates)]
    return SystemResult(
        name=name,
        errors=_errors(spoken, answers),
        own_errors=_errors(spoken, [one.best(own[k % 2]) for k, one in enumerate(candidates)]),
        lm_steps=sum(one.lm_steps for one in candidates),
        tree_nodes=sum(one.tree_nodes for one in candidates),
        seconds=float(np.median([one.seconds for one in candidates])),
        answers=tuple(answers),
    )


def _errors(spoken: Sequence[Spoken], answers: Sequence[str]) -> int:
    pairs = zip(spoken, answers, strict=True)
    return sum(int(error_counts(one.reference, [answer])[0]) for one, answer in pairs)


def _tuned(
    dev: Sequence[Spoken], candidates: Sequence[Candidates], start: LatticeWeights
) -> LatticeWeights:
    """Weights with the fewest errors on candidates, by exact line searches."""
    errors = [error_counts(d.reference, c.texts) for d, c in zip(dev, candidates, strict=True)]
    counts = np.array([len(one.texts) for one in candidates])
    data = TuningSet(
        names=NAMES,
        features=np.concatenate([one.features for one in candidates]),
        errors=np.concatenate(errors),
        starts=np.cumsum(counts) - counts,
        words=sum(len(one.reference.split()) for one in dev),
    )
    values: Mapping[str, float] = {"am": 1.0, "lm": start.lm_scale, "words": start.word_bonus}
    result = tune(data, values, ("lm", "words"))
    return LatticeWeights(result.weights["lm"], result.weights["words"])


def _joined(pool: Sequence[Candidates]) -> Candidates:
    """All sequences that were ever found of an utterance, each once."""
    texts = [text for one in pool for text in one.texts]
    features = np.concatenate([one.features for one in pool])
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    places = sorted(first.values())
    return replace(pool[-1], texts=tuple(texts[k] for k in places), features=features[places])
