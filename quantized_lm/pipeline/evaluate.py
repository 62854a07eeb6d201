"""Evaluate stage: perplexity of an artifact on held-out text, and what quantization cost.

The artifact is scored by the code that serves it: line by line, without context, or, where the
lines are one running text, after the lines before it. The float teacher is scored the same way, so
the difference per token is paired.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantized_lm.artifact import LoadedModel, load_artifact
from quantized_lm.errors import DataError
from quantized_lm.models.base import LanguageModel
from quantized_lm.ops import AUTO
from quantized_lm.pipeline.checkpoint import read_history
from quantized_lm.pipeline.corpus import Corpus, open_corpus
from quantized_lm.pipeline.progress import track
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.tokenizer import BOUNDARY_ID

HELD_OUT = ("dev", "test")
BATCH_PASSAGES = 16
RESAMPLES = 2000


@dataclass(frozen=True)
class PerplexityReport:
    """Held-out perplexity of an artifact beside its float teacher.

    Attributes:
        split: "dev" or "test". backend: what computed the artifact's scores.
        tokens: scored, every line's `</s>` counted. words: `</s>` not counted.
        nll, teacher_nll: nats per token.
        word_perplexity: exp(all nats, those of `</s>` included, over words).
        perplexity_ratio: of the artifact to the teacher, per token.
        nll_difference: artifact minus teacher, nats per token, with the 95 % interval of a paired
            bootstrap over lines.
    """

    split: str
    backend: str
    lines: int
    tokens: int
    words: int
    nll: float
    token_perplexity: float
    word_perplexity: float
    teacher_nll: float
    teacher_token_perplexity: float
    teacher_word_perplexity: float
    perplexity_ratio: float
    nll_difference: float
    nll_difference_low: float
    nll_difference_high: float


def evaluate(
    recipe: Recipe,
    *,
    run: Path,
    artifact: Path,
    split: str = "test",
    backend: str = AUTO,
    device: str = AUTO,
) -> PerplexityReport:
    """Measure an artifact and its teacher on a held-out split.

    Args:
        backend, device: of the artifact, as `load_artifact` takes them.

    Raises:
        DataError: no such split, the run's corpus or float weights are missing, or the artifact
            was made of other float weights.
        ArtifactError: the artifact is refused.
        BackendError: the backend or the device cannot be used here.
    """
    require_split(split)
    corpus = open_corpus(recipe.corpus, run / "corpus")
    loaded = load_artifact(artifact, backend=backend, device=device)
    if loaded.tokenizer.to_json() != corpus.tokenizer.to_json():
        raise DataError(
            f"{artifact} has another vocabulary than the corpus of {run}, whose tokens are "
            "measured; name the model of that run"
        )
    teacher = load_teacher(recipe, run)
    _require_of_teacher(loaded, run)
    text = held_out_text(recipe, corpus, split)
    nats = line_nats(loaded.model, text, f"{loaded.name} on {split}")
    teacher_nats = line_nats(teacher, text, f"float teacher on {split}")
    return compare(nats, teacher_nats, text, backend=loaded.backend, words=corpus.words[split])


def _require_of_teacher(artifact: LoadedModel, run: Path) -> None:
    """The difference is called what packing cost: it must not be that of two float models."""
    if artifact.manifest.provenance.get("train") != read_history(run / "train" / "history.jsonl"):
        raise DataError(
            f"{artifact.name} packs another float model than the one that {run} has now; quantize "
            "and export that, or name the run that the model was made in"
        )


def compare(
    nats: NDArray[np.float64],
    teacher_nats: NDArray[np.float64],
    text: HeldOutText,
    *,
    backend: str,
    words: int,
) -> PerplexityReport:
    """The report of one model beside another on the same lines.

    Args:
        nats, teacher_nats: of each line or piece of one, as `line_nats` gives them.
        backend: what computed `nats`.
        words: in `text`.
    """
    starts = text.line_starts
    tokens = np.add.reduceat(text.num_tokens, starts)
    low, high = _paired_interval(np.add.reduceat(nats - teacher_nats, starts), tokens)
    total = int(tokens.sum())
    nll, teacher_nll = float(nats.sum() / total), float(teacher_nats.sum() / total)
    return PerplexityReport(
        split=text.split,
        backend=backend,
        lines=len(tokens),
        tokens=total,
        words=words,
        nll=nll,
        token_perplexity=math.exp(nll),
        word_perplexity=math.exp(float(nats.sum()) / words),
        teacher_nll=teacher_nll,
        teacher_token_perplexity=math.exp(teacher_nll),
        teacher_word_perplexity=math.exp(float(teacher_nats.sum()) / words),
        perplexity_ratio=math.exp(nll - teacher_nll),
        nll_difference=nll - teacher_nll,
        nll_difference_low=low,
        nll_difference_high=high,
    )


@dataclass(frozen=True)
class Passage:
    """Lines scored in one path of a tree.

    Attributes:
        context: tokens before them, each line's boundary among them.
        lines: token ids of each line, or piece of one, its boundary at the end.
    """

    context: tuple[int, ...]
    lines: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class HeldOutText:
    """A held-out split, cut into what is scored together."""

    split: str
    passages: tuple[Passage, ...]

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """(pieces,) int64 tokens of each line or piece of one, its boundary counted."""
        return np.asarray([len(line) for part in self.passages for line in part.lines], np.int64)

    @property
    def line_starts(self) -> NDArray[np.int64]:
        """(lines,) int64 number of each line's first piece."""
        lasts = [line[-1] for part in self.passages for line in part.lines]
        return np.flatnonzero(np.asarray([BOUNDARY_ID, *lasts[:-1]]) == BOUNDARY_ID)


def held_out_text(recipe: Recipe, corpus: Corpus, split: str) -> HeldOutText:
    """Cut a split so that every path fits the model.

    A line longer than that comes in pieces, each after what comes before it in the line.

    Lines of running text come in blocks of up to half the training window, after as many whole
    lines before them as the window holds.

    Raises:
        DataError: no such split.
    """
    require_split(split)
    limit = recipe.model["max_tokens"]
    tokens = np.asarray(corpus.tokens(split))
    ends = np.flatnonzero(tokens == BOUNDARY_ID)
    lines = [tuple(line.tolist()) for line in np.split(tokens, ends[:-1] + 1)]
    if not recipe.corpus.continuous:
        return lines_alone(split, lines, limit)
    window = min(recipe.train.window, limit)
    pieces = [line[at : at + window] for line in lines for at in range(0, len(line), window)]
    return HeldOutText(split, tuple(_running_passages(pieces, window)))


def lines_alone(name: str, lines: Iterable[tuple[int, ...]], limit: int) -> HeldOutText:
    """Cut lines that have nothing to do with each other so that every path fits a model.

    Args:
        name: what `split` of the text is.
        lines: token ids of each, its boundary at the end.
        limit: tokens of a path.
    """
    passages = (_passages(line, limit) for line in lines)
    return HeldOutText(name, tuple(itertools.chain.from_iterable(passages)))


def require_split(split: str) -> None:
    """Refuse what is no held-out split.

    Raises:
        DataError: as it says.
    """
    if split not in HELD_OUT:
        raise DataError(f"split is {split!r}; need {' or '.join(HELD_OUT)}")


def line_nats(model: LanguageModel, text: HeldOutText, title: str) -> NDArray[np.float64]:
    """-log P(line, </s> | context) per line or piece of one, (pieces,) float64 nats."""
    nats: list[float] = []
    for start in track(range(0, len(text.passages), BATCH_PASSAGES), title):
        batch = text.passages[start : start + BATCH_PASSAGES]
        paths = [np.asarray([t for line in part.lines for t in line], np.int32) for part in batch]
        log_probs = model.extend(
            [model.new_state(part.context) for part in batch],
            [
                np.arange(len(path), dtype=np.int32) + np.int32(len(part.context))
                for part, path in zip(batch, paths, strict=True)
            ],
            paths,
        )
        for part, log_prob in zip(batch, log_probs, strict=True):
            ends = np.cumsum([len(line) for line in part.lines])
            nats.extend(
                -float(of_line.astype(np.float64).sum())
                for of_line in np.split(log_prob, ends[:-1])
            )
    return np.asarray(nats)


def _passages(line: tuple[int, ...], limit: int) -> Iterator[Passage]:
    """A line of its own; of one that is too long, pieces after as much of it as there is room for.

    Args:
        limit: tokens of a path.
    """
    yield Passage((), (line[:limit],))
    step = max(1, limit // 2)
    for start in range(limit, len(line), step):
        yield Passage(line[start - (limit - step) : start], (line[start : start + step],))


def _running_passages(lines: Sequence[tuple[int, ...]], window: int) -> Iterator[Passage]:
    start = 0
    while start < len(lines):
        end, room = start + 1, window // 2 - len(lines[start])
        while end < len(lines) and len(lines[end]) <= room:
            room -= len(lines[end])
            end += 1
        room = window - sum(map(len, lines[start:end]))
        first = start
        while first > 0 and len(lines[first - 1]) <= room:
            first -= 1
            room -= len(lines[first])
        yield Passage(tuple(itertools.chain(*lines[first:start])), tuple(lines[start:end]))
        start = end


def _paired_interval(
    difference: NDArray[np.float64], tokens: NDArray[np.int64]
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference per token; lines are what is drawn."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(tokens), len(tokens))
        means.append(difference[drawn].sum() / tokens[drawn].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
