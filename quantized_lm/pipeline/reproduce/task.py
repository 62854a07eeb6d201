"""A task: the table that is to be reproduced, and the numbers it is made with at every size.

A task file may be `based_on` one of common/: what it says then replaces single fields of that.
Settings are layered: `base`, then what the size sets for all, then the architecture, then the size
for that architecture. A later layer replaces single fields of an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from quantized_lm.dev_set import SPEAKER_PATTERN
from quantized_lm.errors import RecipeError
from quantized_lm.manifest import require_weights
from quantized_lm.nbest import DEFAULT_FIRST_PASS
from quantized_lm.pipeline.recipe import (
    CorpusRecipe,
    QuantizeRecipe,
    Recipe,
    TrainRecipe,
    taken_from,
)
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers import TRAINED_QUANTIZERS
from quantized_lm.records import build

TASKS = Path(__file__).parents[2] / "recipes" / "reproduce"
COMMON = TASKS / "common"  # what a task may be based on
EVERY_ARCHITECTURE = "all"


@dataclass(frozen=True)
class Target:
    """What the table is to show.

    Attributes:
        compression: float32 bytes over bytes on disk, at least.
        max_ratio: perplexity over that of the float model, at most.
        everywhere: every architecture must reach it, not just one.
        accepts_interval: instead of `max_ratio`, the paired 95 % interval of the log-loss
            difference may hold zero or lie below it.
        keeps_wer: on no lists are there significantly more word errors than with the float model.
    """

    compression: float
    max_ratio: float
    everywhere: bool = False
    accepts_interval: bool = False
    keeps_wer: bool = False


@dataclass(frozen=True)
class ListSet:
    """N-best lists with references on which the table's models are compared by word errors.

    The weights of each model are tuned on the even half of the speakers; errors are those of the
    odd half, and of all.

    Attributes:
        name: for programs. title: for readers.
        file: in the folder of speech data.
        first_pass: key of FIRST_PASS.
        speaker_of: regular expression that finds the speaker in an utterance id.
    """

    name: str
    title: str
    file: str
    first_pass: str = DEFAULT_FIRST_PASS
    speaker_of: str = SPEAKER_PATTERN


@dataclass(frozen=True)
class LatticeSet:
    """Lattices without references, on which models are compared with the float model's best path.

    Attributes:
        name: for programs. title: for readers.
        folder: in the folder of speech data.
        am_scale, graph_scale, lm_scale, word_bonus: what ranks word sequences.
    """

    name: str
    title: str
    folder: str
    lm_scale: float
    am_scale: float = 1.0
    graph_scale: float = 0.0
    word_bonus: float = 0.0


@dataclass(frozen=True)
class Setting:
    """The numbers of one architecture at one size.

    Attributes:
        model: sizes of the architecture, without vocab_size, which is the corpus's.
        start: as in `Recipe`: what is not said of model and corpus is then as that model has it.
        cut_lines: how many lines are kept of a text file; files not named are whole.
        quantize: fields of `QuantizeRecipe` that the methods share.
        methods: by name, fields of `QuantizeRecipe` over those; `formats` come from the row.
        choices: formats that mixed precision may choose from.
        sensitivity_windows: of training text that sensitivities are measured on.
        search: fields of the architecture search's settings.
    """

    model: dict[str, Any]
    corpus: CorpusRecipe
    train: TrainRecipe
    quantize: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    choices: tuple[str, ...]
    start: str = ""
    cut_lines: dict[str, int] = field(default_factory=dict)
    sensitivity_windows: int = 32
    search: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task file.

    Attributes:
        title: of the report. protocol: a sentence on text and scoring, for the report.
        base, architectures, sizes: layers of `Setting`; a size holds a layer by architecture,
            and under "all" one for each.
        rows: of the table, in its order: name, kind (key in ROW_KINDS), label, the kind's own
            fields, and the model's name if it is to have one of its own.
        default_weights: for requests to the models that name none; what is not said is
            DEFAULT_WEIGHTS.
        size_notes: a sentence on a size, for the report.
        lists, lattices: of decoders, that the models rescore where the data is at hand.
        run_first: patterns of row names (fnmatch); rows of earlier patterns are made earlier.
    """

    name: str
    title: str
    protocol: str
    license: str
    training_data: str
    seed: int
    base: dict[str, Any]
    architectures: dict[str, dict[str, Any]]
    sizes: dict[str, dict[str, Any]]
    rows: tuple[dict[str, Any], ...]
    run_first: tuple[str, ...] = ()
    size_notes: dict[str, str] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    default_weights: dict[str, float] = field(default_factory=dict)
    lists: tuple[ListSet, ...] = ()
    lattices: tuple[LatticeSet, ...] = ()

    def __post_init__(self) -> None:
        """Refuse weights that no model can have, before hours of training."""
        require_weights(self.default_weights)

    def setting(self, architecture: str, size: str) -> Setting:
        """The numbers of one architecture at one size.

        Raises:
            RecipeError: there is no such architecture or size, or a field is unknown or missing.
            ArtifactError: the model to start from cannot be read.
        """
        _require_known("architecture", architecture, self.architectures)
        _require_known("size", size, self.sizes)
        layers = (
            self.base,
            self.sizes[size].get(EVERY_ARCHITECTURE, {}),
            self.architectures[architecture],
            self.sizes[size].get(architecture, {}),
        )
        where = f"{self.name}: {architecture} at size {size}"
        fields = reduce(merged, layers)
        if fields.get("start"):
            taken = taken_from(fields["start"])
            fields = merged({name: taken[name] for name in ("corpus", "model")}, fields)
        setting = build(Setting, fields, where=where, error=RecipeError)
        setting.model["vocab_size"] = setting.corpus.vocab_size
        return setting

    def recipe(self, architecture: str, setting: Setting, quantize: QuantizeRecipe) -> Recipe:
        """One model of the table, as every stage takes it."""
        return Recipe(
            name=f"{self.name}-{architecture}",
            seed=self.seed,
            architecture=architecture,
            model=setting.model,
            corpus=setting.corpus,
            train=setting.train,
            quantize=quantize,
            license=self.license,
            training_data=self.training_data,
            start=setting.start,
        )


def method_recipe(
    setting: Setting,
    method: str,
    *,
    formats: Mapping[str, str],
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> QuantizeRecipe:
    """How a method of the task quantizes.

    Args:
        formats: as in `QuantizeRecipe`; empty where an allocation will give them.
        settings: of the method's quantizer, over those of the task.

    Raises:
        RecipeError: no such method or quantizer, or a field is unknown or missing.
        FormatError: there is no such format, or a setting is out of range.
    """
    _require_known("method", method, setting.methods)
    fields = merged(setting.quantize, setting.methods[method])
    fields = merged(fields, {"settings": dict(settings), "formats": dict(formats)})
    where = f"method {method}"
    recipe = build(QuantizeRecipe, fields, where=where, error=RecipeError)
    _require_known(f"{where}: method", recipe.method, TRAINED_QUANTIZERS)
    entry = TRAINED_QUANTIZERS[recipe.method]
    build(entry.settings, recipe.settings, where=f"{where}: settings", error=RecipeError)
    for choice in formats.values():
        Grid.parse(choice)
    return recipe


def load_task(name: str) -> Task:
    """Read a task that ships with the package, or a task file.

    Args:
        name: of the task, or the path of a YAML file.

    Raises:
        RecipeError: there is none, or a field is unknown, missing or of a wrong type.
    """
    path = TASKS / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
        raise RecipeError(f"no task {name!r} ships with secondpass; give a file or one of: {known}")
    value = _read(path)
    if "based_on" in value:
        common = COMMON / f"{value.pop('based_on')}.yaml"
        value = merged(_read(common), value)
    task = build(Task, value, where=path.name, error=RecipeError)
    _require_layers(task)
    return task


def _read(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"task {path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"task {path}: got {value!r}; need a mapping of fields")
    return value


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged all the way down; where both have a value, that of `upper`."""
    result = dict(lower)
    for name, value in upper.items():
        below = result.get(name)
        both = isinstance(below, dict) and isinstance(value, dict)
        result[name] = merged(below, value) if both and below is not None else value
    return result


def _require_layers(task: Task) -> None:
    """A layer for an architecture that is not there would change nothing, silently."""
    known = {EVERY_ARCHITECTURE, *task.architectures}
    for size, layers in task.sizes.items():
        for name in layers:
            _require_known(f"sizes: {size}: layer", name, known)


def _require_known(what: str, name: str, known: Mapping[str, object] | set[str]) -> None:
    if name not in known:
        raise RecipeError(f"{what} is {name!r}; need one of {', '.join(sorted(known))}")
