"""Evaluate stage: perplexity of an artifact on held-out text, and what quantization cost.

The artifact is scored by the code that serves it, line by line without context. The float teacher
is scored the same way, so the difference per token is paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantized_lm.artifact import load_artifact
from quantized_lm.errors import DataError
from quantized_lm.models.base import LanguageModel
from quantized_lm.pipeline.corpus import Corpus, open_corpus
from quantized_lm.pipeline.progress import track
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.tokenizer import BOUNDARY_ID
from quantized_lm.tree import build_tree

HELD_OUT = ("dev", "test")
BATCH_LINES = 32
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
    recipe: Recipe, *, out: Path, artifact: Path, split: str = "test", backend: str = "auto"
) -> PerplexityReport:
    """Measure an artifact and its teacher on a held-out split.

    Raises:
        DataError: no such split, or the run's corpus or float checkpoint is missing.
        ArtifactError: the artifact is refused.
    """
    if split not in HELD_OUT:
        raise DataError(f"split is {split!r}; need {' or '.join(HELD_OUT)}")
    corpus = open_corpus(out / "corpus")
    loaded = load_artifact(artifact, backend=backend)
    lines = _lines(corpus, split, limit=loaded.model.max_tokens)
    tokens = np.asarray([len(line) + 1 for line in lines])
    nats = line_nats(loaded.model, lines, f"{loaded.name} on {split}")
    teacher = line_nats(load_teacher(recipe, out), lines, f"float teacher on {split}")
    low, high = _paired_interval(nats - teacher, tokens)
    total, words = int(tokens.sum()), corpus.words[split]
    nll, teacher_nll = float(nats.sum() / total), float(teacher.sum() / total)
    return PerplexityReport(
        split=split,
        backend=loaded.backend,
        lines=len(lines),
        tokens=total,
        words=words,
        nll=nll,
        token_perplexity=math.exp(nll),
        word_perplexity=math.exp(float(nats.sum()) / words),
        teacher_nll=teacher_nll,
        teacher_token_perplexity=math.exp(teacher_nll),
        teacher_word_perplexity=math.exp(float(teacher.sum()) / words),
        perplexity_ratio=math.exp(nll - teacher_nll),
        nll_difference=nll - teacher_nll,
        nll_difference_low=low,
        nll_difference_high=high,
    )


def line_nats(
    model: LanguageModel, lines: Sequence[NDArray[np.uint16]], title: str
) -> NDArray[np.float64]:
    """-log P(line, </s>) per line, (len(lines),) float64 nats, each line alone."""
    starts = range(0, len(lines), BATCH_LINES)
    nats: list[float] = []
    for start in track(starts, title):
        trees = [build_tree([line.tolist()]) for line in lines[start : start + BATCH_LINES]]
        log_probs = model.extend(
            [model.new_state() for _ in trees],
            [tree.parent[1:] for tree in trees],
            [tree.token[1:] for tree in trees],
        )
        nats.extend(-float(part.astype(np.float64).sum()) for part in log_probs)
    return np.asarray(nats)


def _lines(corpus: Corpus, split: str, *, limit: int) -> list[NDArray[np.uint16]]:
    """Token ids of each line without its boundary, cut at the model's length."""
    tokens = np.asarray(corpus.tokens(split))
    ends = np.flatnonzero(tokens == BOUNDARY_ID)
    return [line[:-1][: limit - 1] for line in np.split(tokens, ends[:-1] + 1)]


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
