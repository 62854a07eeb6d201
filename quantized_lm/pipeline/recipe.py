"""A recipe: everything that decides what a model becomes, as one frozen value read from YAML.

Unknown fields are refused: a typo in a learning rate must not train a model for hours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from quantized_lm.artifact import model_folder
from quantized_lm.errors import RecipeError
from quantized_lm.manifest import read_verified
from quantized_lm.records import build
from quantized_lm.tokenizer import TextRules

LARGEST_VOCABULARY = 1 << 16
_LARGEST_SEED = (1 << 32) - 1
# What a recipe that starts from a model has as that model's recipe, unless it says otherwise.
_TAKEN = ("seed", "architecture")
_OF_OWN_STEPS = ("restarts", "keep_every")  # of training, which it does not have
_OF_EVERY_STAGE = ("steps", "matrix_lr", "other_lr", "clip_norm", "warmup_steps")
_TAKEN_OF_CORPUS = ("vocab_size", "text", "merge", "context", "continuous")


@dataclass(frozen=True)
class CorpusRecipe:
    """Which text, how it is split and how lines become training documents.

    Attributes:
        train: gzip text files, one sentence per line, relative to the data folder.
        vocab_size: tokens, the boundary and unknown symbols included.
        vocab_from: the files the vocabulary is learned from; for "kaldi" one symbol table; for
            "model" a packed model's folder, or the name of one that ships with the package.
        vocabulary: key in VOCABULARIES: "bpe" pieces; "words", the most frequent ones; "kaldi",
            the words of a symbol table such as `words.txt`, in its order; "model", what a packed
            model has.
        text: how a line is changed before it is cut into words.
        dev, test: files to measure on; where one is empty, lines are held out for it.
        held_out: the file of `train` whose last lines are kept.
        dev_lines, test_lines: how many of those; test is the very end.
        merge: probability that a line continues the one before it in one segment.
        context: probability that a segment sees the one before it as context.
        continuous: lines are one running text: documents are as many of them as fit the window,
            and a line is measured in the context of the lines before it.
    """

    train: tuple[str, ...]
    vocab_size: int
    vocab_from: tuple[str, ...]
    vocabulary: str = "bpe"
    text: TextRules = field(default_factory=TextRules)
    dev: str = ""
    test: str = ""
    held_out: str = ""
    dev_lines: int = 0
    test_lines: int = 0
    merge: float = 0.0
    context: float = 0.0
    continuous: bool = False

    def __post_init__(self) -> None:
        for split, file, lines in (
            ("dev", self.dev, self.dev_lines),
            ("test", self.test, self.test_lines),
        ):
            if bool(file) == bool(lines):
                raise RecipeError(f"corpus: give either {split} or {split}_lines")
        if bool(self.held_out) != bool(self.dev_lines or self.test_lines):
            raise RecipeError("corpus: held_out names the file that dev_lines and test_lines end")
        if not 2 < self.vocab_size <= LARGEST_VOCABULARY:
            raise RecipeError(
                f"corpus: vocab_size is {self.vocab_size}; need 3 to {LARGEST_VOCABULARY}, as "
                "tokens are stored in 16 bits"
            )
        if not (min(self.merge, self.context) >= 0 and self.merge + self.context < 1):
            raise RecipeError(
                f"corpus: merge is {self.merge}, context is {self.context}; need both at least 0 "
                "and their sum below 1, or no document would end"
            )
        if not self.vocab_from:
            raise RecipeError("corpus: vocab_from is empty; name what the vocabulary is made from")
        trained_on = set(map(os.path.normpath, self.train))
        for split, file in (("dev", self.dev), ("test", self.test)):
            if file and os.path.normpath(file) in trained_on:
                raise RecipeError(
                    f"corpus: {split} is {file}, which is in train; what is trained on measures "
                    f"nothing: name another file, or hold lines out with {split}_lines"
                )
        if self.dev and self.test and os.path.normpath(self.dev) == os.path.normpath(self.test):
            raise RecipeError(
                f"corpus: test is {self.test}, which is dev; weights are chosen on dev: name "
                "another file, or hold lines out with test_lines"
            )


@dataclass(frozen=True)
class TrainRecipe:
    """How the float model is trained: warm-up, stable, linear decay to zero.

    Attributes:
        window: tokens per packed window. batch_windows: windows per step.
        matrix_lr: Muon's, for the weight matrices. other_lr: AdamW's, for the rest.
        weight_decay: of the matrices. dropout: share of every hidden vector that is dropped.
        clip_norm: a longer gradient is shortened to this; 0 leaves it.
        decay_share: share of the steps over which the rate falls linearly to zero.
        restarts: steps at which a run that was over goes on: each makes an end of its own, with
            warm-up and decay over its own steps (WSD-S, Wen et al., arXiv 2410.05192).
        eval_every: steps between measurements on dev.
        keep_every: steps between weights that are kept besides the best; 0 keeps none.
        compile: fuse the training step with torch.compile (needs a C++ compiler).
    """

    steps: int
    window: int
    batch_windows: int
    matrix_lr: float
    other_lr: float
    weight_decay: float = 0.0
    dropout: float = 0.0
    clip_norm: float = 0.0
    warmup_steps: int = 50
    decay_share: float = 0.5
    restarts: tuple[int, ...] = ()
    eval_every: int = 250
    keep_every: int = 0
    compile: bool = True

    def __post_init__(self) -> None:
        _require_at_least(1, "train", self, ("window", "batch_windows", "eval_every"))
        _require_at_least(0, "train", self, (*_OF_EVERY_STAGE, "weight_decay", "keep_every"))
        _require_shares("train", self, ("decay_share",))
        _require_dropout("train", self.dropout)
        ends = (0, *self.restarts, self.steps)
        if self.restarts and list(ends) != sorted(set(ends)):
            raise RecipeError(
                f"train: restarts are {list(self.restarts)}; need them ascending, between 0 and "
                f"the {self.steps} steps"
            )

    @property
    def kept_steps(self) -> range:
        """After which updates weights are kept, the last one's left out."""
        return range(self.keep_every or self.steps, self.steps, self.keep_every or 1)


@dataclass(frozen=True)
class QuantizeRecipe:
    """How the float teacher becomes a packed student, with quantizers in the loop.

    Attributes:
        steps: updates; 0 only rounds the teacher.
        formats: packed format by tensor name pattern (fnmatch), first match wins.
        method: key in TRAINED_QUANTIZERS. settings: what its settings class takes.
        overrides: by tensor name pattern, first match wins: settings that differ for these tensors.
        kl_weight: weight of KL(teacher || student); the rest is cross entropy on the text.
        dropout, clip_norm: as in training.
        extra_gradient: update with the gradient at the point that a first update reaches
            (Gidel et al., 2019); twice the time.
    """

    steps: int
    batch_windows: int
    matrix_lr: float
    other_lr: float
    formats: dict[str, str]
    method: str = "learned"
    settings: dict[str, Any] = field(default_factory=dict)
    scale_lr: float = 0.001
    kl_weight: float = 0.9
    dropout: float = 0.0
    clip_norm: float = 0.0
    extra_gradient: bool = False
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    warmup_steps: int = 20
    eval_every: int = 100

    def __post_init__(self) -> None:
        _require_at_least(1, "quantize", self, ("batch_windows", "eval_every"))
        _require_at_least(0, "quantize", self, (*_OF_EVERY_STAGE, "scale_lr"))
        _require_shares("quantize", self, ("kl_weight",))
        _require_dropout("quantize", self.dropout)


@dataclass(frozen=True)
class Recipe:
    """One model from text to artifact.

    Attributes:
        start: a packed model's folder, or the name of one that ships with the package, whose
            weights training goes on from; "" for random ones. In YAML, what the recipe does not
            say is then as that model's own recipe has it.
    """

    name: str
    seed: int
    architecture: str
    model: dict[str, Any]
    corpus: CorpusRecipe
    train: TrainRecipe
    quantize: QuantizeRecipe
    license: str
    training_data: str
    start: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise RecipeError(f"seed is {self.seed}; need 0 to {_LARGEST_SEED}")
        if not self.name or self.name.startswith(".") or Path(self.name).name != self.name:
            raise RecipeError(f"name is {self.name!r}; need the name of a folder, such as en-mine")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: unreadable file, unknown or missing field, wrong type; names the field.
        ArtifactError: the model to start from cannot be read.
    """
    _, given = _read(path)
    whole = _completed(given, where=path.name)
    return build(Recipe, whole, where=path.name, error=RecipeError)


def whole_recipe(path: Path) -> bytes:
    """A recipe as YAML that needs no other to be read: as it is, or with what it takes written out.

    Raises:
        RecipeError, ArtifactError: as `load_recipe`.
    """
    content, given = _read(path)
    whole = _completed(given, where=path.name)
    return content if whole == given else yaml.safe_dump(whole, sort_keys=False).encode()


def recipe_with(path: Path, quantize: Mapping[str, Any]) -> bytes:
    """A recipe as YAML that needs no other to be read, with some fields of `quantize` replaced.

    Raises:
        RecipeError, ArtifactError: as `load_recipe`, of what comes of it.
    """
    _, given = _read(path)
    whole = _completed(given, where=path.name)
    changed = {**whole, "quantize": {**_mapping(whole.get("quantize")), **quantize}}
    build(Recipe, changed, where=path.name, error=RecipeError)
    return yaml.safe_dump(changed, sort_keys=False).encode()


def _read(path: Path) -> tuple[bytes, Any]:
    """A file, and what it says."""
    try:
        content = path.read_bytes()
        return content, yaml.safe_load(content.decode())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from None


def taken_from(start: str) -> dict[str, Any]:
    """What a recipe that starts from a packed model has of that model's own recipe.

    Raises:
        ArtifactError: there is no such model, or it is damaged.
    """
    base = _mapping(yaml.safe_load(read_verified(model_folder(start), "recipe.yaml")))
    corpus, train = _mapping(base.get("corpus")), _mapping(base.get("train"))
    return {
        **{name: base[name] for name in _TAKEN if name in base},
        "corpus": {name: corpus[name] for name in _TAKEN_OF_CORPUS if name in corpus}
        | {"vocabulary": "model", "vocab_from": [start]},
        "model": _mapping(base.get("model")),
        "train": {name: train[name] for name in train if name not in _OF_OWN_STEPS},
        "quantize": _mapping(base.get("quantize")),
    }


def _completed(given: Any, *, where: str) -> Any:
    """What a recipe says; of one that starts from a model with what it takes from that one's."""
    start = given.get("start") if isinstance(given, dict) else None
    if not start:
        return given
    if not isinstance(start, str):
        raise RecipeError(f"{where}: start is {start!r}; need a model's folder or name")
    taken = taken_from(start)
    completed = {**taken, **given}
    for section, fields in taken.items():
        more = given.get(section, {})
        if isinstance(fields, dict) and isinstance(more, dict):
            completed[section] = {**fields, **more}
    return completed


def _require_at_least(least: int, section: str, fields: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not getattr(fields, name) >= least:
            raise RecipeError(
                f"{section}: {name} is {getattr(fields, name)}; need at least {least}"
            )


def _require_shares(section: str, fields: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(fields, name) <= 1:
            raise RecipeError(f"{section}: {name} is {getattr(fields, name)}; need 0 to 1")


def _require_dropout(section: str, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise RecipeError(f"{section}: dropout is {dropout}; need at least 0 and below 1")


def _mapping(value: object) -> dict[str, Any]:
    """A model may come with any recipe, or none to speak of; then nothing is taken from it."""
    return value if isinstance(value, dict) else {}
