"""Scores of a held-out split: nats of every line, by the code that serves the model."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import DataError
from quantized_lm.files import write_atomic
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.evaluate import HeldOutText, held_out_text, line_nats
from quantized_lm.pipeline.reproduce.models import FloatStage, ModelStage
from quantized_lm.pipeline.reproduce.store import FolderOf, Stage

_NATS, _ABOUT = "nats.npy", "scores.json"


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model gives to the lines of a split.

    Attributes:
        nats: (pieces,) float64, -log P(line, </s> | context) of each line or piece of one.
        backend: what computed them.
    """

    nats: NDArray[np.float64]
    backend: str


@dataclass(frozen=True)
class Split:
    """A held-out split as it is scored; words without `</s>`."""

    text: HeldOutText
    words: int


@dataclass(frozen=True, eq=False)
class ScoreStage(Stage):
    """A model's scores on "dev" or "test"."""

    model: ModelStage
    split: str

    kind = "score"
    version = 2  # long lines come in pieces

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The model, and what holds its corpus."""
        return tuple(dict.fromkeys((self.model, self.model.float_stage)))

    @property
    def content(self) -> tuple[object, ...]:
        """The split."""
        return (self.split,)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"score {self.split}"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Score every line."""
        scorer = self.model.load(folder_of)
        text = open_split(self.model.float_stage, self.split, folder_of).text
        name = self.model.recipe_of(folder_of).name
        nats = line_nats(scorer.model, text, f"{name} on {self.split}")
        content = io.BytesIO()
        np.save(content, nats)
        write_atomic(folder / _NATS, content.getvalue())
        about = {"backend": scorer.backend}
        write_atomic(folder / _ABOUT, json.dumps(about).encode())


def read_scores(folder: Path) -> Scores:
    """What a finished `ScoreStage` left.

    Raises:
        DataError: it is damaged.
    """
    try:
        nats = np.load(folder / _NATS, allow_pickle=False)
        return Scores(nats, json.loads((folder / _ABOUT).read_bytes())["backend"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: no scores can be read ({error}); delete it") from None


def open_split(model: FloatStage, split: str, folder_of: FolderOf) -> Split:
    """A held-out split of a trained model's corpus.

    Raises:
        DataError: it was not prepared.
    """
    corpus = open_corpus(model.recipe.corpus, folder_of(model) / "corpus")
    return Split(held_out_text(model.recipe, corpus, split), corpus.words[split])
