"""Stages that make models: text, float model, student, artifact."""

from __future__ import annotations

import gc
import gzip
import hashlib
import itertools
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import yaml

from quantized_lm.artifact import load_artifact
from quantized_lm.errors import DataError
from quantized_lm.files import write_atomic
from quantized_lm.manifest import read_manifest
from quantized_lm.models.base import LanguageModel
from quantized_lm.pipeline.allocate import read_allocation
from quantized_lm.pipeline.checkpoint import read_history
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.export import RunFolders, export
from quantized_lm.pipeline.quantize import load_teacher, quantize
from quantized_lm.pipeline.recipe import QuantizeRecipe, Recipe
from quantized_lm.pipeline.reproduce.sizing import float_bytes_of
from quantized_lm.pipeline.reproduce.store import FolderOf, Stage
from quantized_lm.pipeline.start import model_revisions
from quantized_lm.pipeline.text_files import read_lines
from quantized_lm.pipeline.train import train
from quantized_lm.tokenizer import Tokenizer

ALLOCATION = "allocation.json"
DEFAULT_WEIGHTS = {"am_scale": 1.0, "lm_scale": 0.5, "word_bonus": 0.0}


@dataclass(frozen=True)
class Scorer:
    """A model that is ready to score texts, and what computes it."""

    name: str
    tokenizer: Tokenizer
    model: LanguageModel
    backend: str


@dataclass(frozen=True, eq=False)
class TextStage(Stage):
    """Text files, cut to their first lines where the task says so.

    Attributes:
        data: where the files are; not part of the key.
        files: name of each, and sha256 of its lines. cut_lines: as in `Setting`.
    """

    data: Path
    files: tuple[tuple[str, str], ...]
    cut_lines: dict[str, int]

    kind = "text"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """None."""
        return ()

    @property
    def content(self) -> tuple[object, ...]:
        """The bytes of the files."""
        return (self.files, self.cut_lines)

    @property
    def title(self) -> str:
        """For the progress view."""
        return "cut text" if self.cut_lines else "text"

    def run(self, folder: Path, folder_of: FolderOf) -> None:  # noqa: ARG002
        """Write the files that are cut, all of them if one is."""
        for name, _ in self.files if self.cut_lines else ():
            lines = itertools.islice(read_lines(self.data / name), self.cut_lines.get(name))
            content = gzip.compress("".join(lines).encode(), mtime=0)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, content)

    def folder(self, folder_of: FolderOf) -> Path:
        """Where the text is to be read."""
        return folder_of(self) if self.cut_lines else self.data


def text_stage(recipe: Recipe, data: Path, cut_lines: dict[str, int]) -> TextStage:
    """The text of a recipe as it now is.

    Raises:
        DataError: a file is missing or no text, or one is to be cut that is not read.
    """
    corpus = recipe.corpus
    vocabulary = () if corpus.vocabulary == "model" else corpus.vocab_from
    names = {*corpus.train, *vocabulary, corpus.dev, corpus.test} - {""}
    unknown = sorted(set(cut_lines) - names)
    if unknown:
        raise DataError(f"cut_lines names {unknown[0]!r}; need one of {', '.join(sorted(names))}")
    return TextStage(
        data, tuple((name, text_hash(data / name)) for name in sorted(names)), cut_lines
    )


def drop_checkpoint(folder: Path) -> None:
    """Free what only a continuation needs: several times the weights, for every model."""
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def text_hash(path: Path) -> str:
    """Of the lines: what gzip adds, the time of packing for one, decides nothing."""
    digest = hashlib.sha256()
    for line in read_lines(path):
        digest.update(line.encode())
    return digest.hexdigest()


class ModelStage(Stage):
    """A stage that leaves a model which can be scored."""

    @property
    @abstractmethod
    def float_stage(self) -> FloatStage:
        """Whose folder holds the corpus."""

    @abstractmethod
    def recipe_of(self, folder_of: FolderOf) -> Recipe:
        """The recipe with everything decided."""

    @abstractmethod
    def load(self, folder_of: FolderOf) -> Scorer:
        """The model as it is served."""

    @abstractmethod
    def weights_bytes(self, folder_of: FolderOf) -> int:
        """Of the weights on disk, everything included."""

    @abstractmethod
    def decoded_bits(self, folder_of: FolderOf) -> float:
        """Bits per weight in memory: of codes, scales and levels, without entropy coding."""

    @abstractmethod
    def training_seconds(self, folder_of: FolderOf) -> float:
        """Spent on updates."""


@dataclass(frozen=True, eq=False)
class FloatStage(ModelStage):
    """Corpus and trained float model: the folder is a run of `train`.

    Attributes:
        device: where it and its students are trained; not part of the key.
    """

    recipe: Recipe
    text: TextStage
    device: str = "cpu"

    kind = "float"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The text."""
        return (self.text,)

    @property
    def content(self) -> tuple[object, ...]:
        """What `train` reads of the recipe, and the packed models that it names."""
        recipe = self.recipe
        decides = (recipe.seed, recipe.architecture, recipe.model, recipe.corpus, recipe.train)
        return (*decides, *model_revisions(recipe))

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"train the float model ({self.recipe.train.steps} steps)"

    @property
    def float_stage(self) -> FloatStage:
        """Itself."""
        return self

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Train; goes on from a checkpoint."""
        _forget_compiled(self.recipe)
        text = self.text.folder(folder_of)
        train(self.recipe, data=text, out=folder, device=self.device)
        drop_checkpoint(folder / "train")

    def recipe_of(self, folder_of: FolderOf) -> Recipe:  # noqa: ARG002
        """As given."""
        return self.recipe

    def load(self, folder_of: FolderOf) -> Scorer:
        """In float32."""
        folder = folder_of(self)
        tokenizer = open_corpus(self.recipe.corpus, folder / "corpus").tokenizer
        model = load_teacher(self.recipe, folder)
        return Scorer(self.recipe.name, tokenizer, model, "torch/float32")

    def weights_bytes(self, folder_of: FolderOf) -> int:  # noqa: ARG002
        """In float32."""
        return float_bytes_of(self.recipe)

    def decoded_bits(self, folder_of: FolderOf) -> float:  # noqa: ARG002
        """Of float32."""
        return 32.0

    def training_seconds(self, folder_of: FolderOf) -> float:
        """Spent on updates."""
        return self.history(folder_of)[-1]["seconds"]

    def history(self, folder_of: FolderOf) -> list[dict[str, float]]:
        """Its learning curve, as training wrote it."""
        return read_history(folder_of(self) / "train" / "history.jsonl")


@dataclass(frozen=True, eq=False)
class QuantizeStage(Stage):
    """A student of a float model.

    Attributes:
        quantize: how; formats and rates are those of the allocation if there is one.
        allocation: a stage that leaves ALLOCATION.
    """

    teacher: FloatStage
    quantize: QuantizeRecipe
    allocation: Stage | None

    kind = "quantize"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The teacher and the allocation."""
        return (self.teacher,) if self.allocation is None else (self.teacher, self.allocation)

    @property
    def content(self) -> tuple[object, ...]:
        """How it is quantized; the order of patterns counts, and no mapping keeps it in a key."""
        overrides = list(self.quantize.overrides)
        formats = list(self.quantize.formats.items())
        return (self.quantize, formats, *([overrides] if overrides else []))

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"quantize by {self.quantize.method} ({self.quantize.steps} steps)"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Quantize; goes on from a checkpoint."""
        _forget_compiled(self.teacher.recipe)
        quantize(
            self.recipe_of(folder_of),
            run=folder_of(self.teacher),
            out=folder,
            device=self.teacher.device,
        )
        drop_checkpoint(folder)

    def recipe_of(self, folder_of: FolderOf) -> Recipe:
        """With the formats that were allocated."""
        recipe = replace(self.teacher.recipe, quantize=self.quantize)
        if self.allocation is None:
            return recipe
        found = read_allocation(folder_of(self.allocation) / ALLOCATION)
        overrides = {name: {"bits": bits} for name, bits in found.rates.items()}
        quantize = replace(self.quantize, formats=found.formats, overrides=overrides)
        return replace(recipe, quantize=quantize)


@dataclass(frozen=True, eq=False)
class ArtifactStage(ModelStage):
    """A student as it is served.

    Attributes:
        name: of the model.
        default_weights: over DEFAULT_WEIGHTS.
    """

    student: QuantizeStage
    name: str
    default_weights: Mapping[str, float]

    kind = "artifact"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """Everything the student was made of."""
        return (*self.student.inputs, self.student)

    @property
    def content(self) -> tuple[object, ...]:
        """What stands in the manifest."""
        recipe = self.student.teacher.recipe
        weights = dict(self.default_weights)
        return (self.name, recipe.license, recipe.training_data, *([weights] if weights else []))

    @property
    def title(self) -> str:
        """For the progress view."""
        return "export"

    @property
    def float_stage(self) -> FloatStage:
        """The teacher."""
        return self.student.teacher

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Export."""
        recipe = self.recipe_of(folder_of)
        export(
            recipe,
            yaml.safe_dump(json.loads(json.dumps(asdict(recipe))), sort_keys=False).encode(),
            folders=RunFolders(folder_of(self.student.teacher), folder_of(self.student)),
            out=folder / self.name,
            default_weights={**DEFAULT_WEIGHTS, **self.default_weights},
        )

    def recipe_of(self, folder_of: FolderOf) -> Recipe:
        """The student's, under the model's name."""
        return replace(self.student.recipe_of(folder_of), name=self.name)

    def load(self, folder_of: FolderOf) -> Scorer:
        """Verified, on the backend that would serve it."""
        loaded = load_artifact(self.model_folder(folder_of))
        return Scorer(loaded.name, loaded.tokenizer, loaded.model, loaded.backend)

    def weights_bytes(self, folder_of: FolderOf) -> int:
        """Of the file."""
        return (self.model_folder(folder_of) / "weights.safetensors").stat().st_size

    def decoded_bits(self, folder_of: FolderOf) -> float:
        """As the manifest says."""
        return read_manifest(self.model_folder(folder_of)).packed_bits_per_weight

    def training_seconds(self, folder_of: FolderOf) -> float:
        """Of the student alone."""
        return read_history(folder_of(self.student) / "history.jsonl")[-1]["seconds"]

    def model_folder(self, folder_of: FolderOf) -> Path:
        """The artifact's."""
        return folder_of(self) / self.name


def _forget_compiled(recipe: Recipe) -> None:
    """Torch compiles a function for a few models only, then leaves it as it is; each is another.

    What is compiled holds its model in reference cycles.
    """
    if recipe.train.compile:
        torch.compiler.reset()
        gc.collect()
