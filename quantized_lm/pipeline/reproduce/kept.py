"""A float model as it was on its way: what more tokens bought."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from quantized_lm.models.float_model import FloatModel
from quantized_lm.pipeline.checkpoint import load_weights
from quantized_lm.pipeline.loop import kept_weights
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.reproduce.models import FloatStage, ModelStage, Scorer
from quantized_lm.pipeline.reproduce.store import FolderOf, Stage


@dataclass(frozen=True, eq=False)
class KeptStage(ModelStage):
    """A float model as it was on its way.

    Attributes:
        whole: whose training kept the weights. step: after how many updates.
    """

    whole: FloatStage
    step: int

    kind = "kept"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The training."""
        return (self.whole,)

    @property
    def content(self) -> tuple[object, ...]:
        """Which weights."""
        return (self.step,)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"weights after {self.step} updates"

    @property
    def float_stage(self) -> FloatStage:
        """The training."""
        return self.whole

    def run(self, folder: Path, folder_of: FolderOf) -> None:  # noqa: ARG002
        """See that they are there."""
        self.load(folder_of)

    def recipe_of(self, folder_of: FolderOf) -> Recipe:
        """The whole training's."""
        return self.whole.recipe_of(folder_of)

    def load(self, folder_of: FolderOf) -> Scorer:
        """In float32."""
        scorer = self.whole.load(folder_of)
        weights = load_weights(kept_weights(folder_of(self.whole) / "train", self.step))
        cast(FloatModel, scorer.model).load_state_dict(weights)
        return scorer

    def weights_bytes(self, folder_of: FolderOf) -> int:
        """In float32."""
        return self.whole.weights_bytes(folder_of)

    def decoded_bits(self, folder_of: FolderOf) -> float:
        """Of float32."""
        return self.whole.decoded_bits(folder_of)

    def training_seconds(self, folder_of: FolderOf) -> float:
        """Spent on the updates so far."""
        return self._measured(folder_of)["seconds"]

    def tokens(self, folder_of: FolderOf) -> int:
        """Seen so far."""
        return int(self._measured(folder_of)["tokens"])

    def _measured(self, folder_of: FolderOf) -> dict[str, float]:
        """The row of the learning curve; kept weights are measured."""
        return next(row for row in self.whole.history(folder_of) if row["step"] == self.step)
