"""From a task to its cells: which stages make which number of the table, in which order."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.evaluate import HELD_OUT
from quantized_lm.pipeline.recipe import QuantizeRecipe
from quantized_lm.pipeline.reproduce.models import FloatStage, ModelStage, text_stage
from quantized_lm.pipeline.reproduce.rows import Row, Workbench, read_row
from quantized_lm.pipeline.reproduce.scores import ScoreStage
from quantized_lm.pipeline.reproduce.speech import (
    LatticesStage,
    ListsStage,
    RescoredStage,
    SpeechStage,
)
from quantized_lm.pipeline.reproduce.store import Stage
from quantized_lm.pipeline.reproduce.task import Task
from quantized_lm.pipeline.start import fitting_manifest

# Of float models, which stages take as part of a recipe but never read.
_NO_QUANTIZE = QuantizeRecipe(steps=0, batch_windows=1, matrix_lr=0.0, other_lr=0.0, formats={})


@dataclass(frozen=True)
class Measures:
    """What measures a model.

    Attributes:
        scores: by split. rescored: by name of the lists or lattices.
    """

    scores: Mapping[str, ScoreStage]
    rescored: Mapping[str, RescoredStage]

    @classmethod
    def of(cls, model: ModelStage, task: Task, decoded: Mapping[str, SpeechStage]) -> Measures:
        """Of a model; lists and lattices only where they are at hand."""
        rescored: dict[str, RescoredStage] = {}
        if decoded:
            rescored |= {one.name: ListsStage(model, decoded[one.name], one) for one in task.lists}
            rescored |= {
                one.name: LatticesStage(model, decoded[one.name], one) for one in task.lattices
            }
        return cls({split: ScoreStage(model, split) for split in HELD_OUT}, rescored)

    def last(self) -> tuple[Stage, ...]:
        """The stages that nothing else here takes."""
        return (*self.scores.values(), *self.rescored.values())

    def stages(self) -> Iterator[Stage]:
        """All it takes, inputs first, repeats kept."""
        for last in self.last():
            yield from last.with_inputs()


@dataclass(frozen=True)
class Cell:
    """One row of one architecture."""

    architecture: str
    row: Row
    model: ModelStage
    own: Measures
    of_teacher: Measures

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.architecture} {self.row.name}"

    def stages(self) -> list[Stage]:
        """All it takes, in an order in which they can be run; each once."""
        stages = itertools.chain(self.of_teacher.stages(), self.own.stages())
        return list({stage.key: stage for stage in stages}.values())


@dataclass(frozen=True)
class Plan:
    """A task at one size.

    Attributes:
        benches: by architecture. cells: by rows, in the order of the table.
        first: as `Task.run_first`.
    """

    task: Task
    size: str
    benches: Mapping[str, Workbench]
    cells: tuple[Cell, ...]

    @property
    def has_speech(self) -> bool:
        """Whether lists and lattices are rescored."""
        return any(cell.own.rescored for cell in self.cells)

    def in_order(self, only: str = "*") -> list[Cell]:
        """The cells of rows that match a pattern, those that tell most first.

        Raises:
            RecipeError: none matches.
        """
        chosen = [cell for cell in self.cells if fnmatch.fnmatchcase(cell.row.name, only)]
        if not chosen:
            names = ", ".join(dict.fromkeys(cell.row.name for cell in self.cells))
            raise RecipeError(f"no row matches {only!r}; rows are {names}")
        return sorted(chosen, key=lambda cell: _rank(cell.row.name, self.task.run_first))


def make_plan(
    task: Task,
    *,
    size: str,
    data: Path,
    speech: Path | None = None,
    architectures: Sequence[str] | None = None,
    device: str = "cpu",
) -> Plan:
    """Lay out every stage; runs nothing, but reads the text to name it by its content.

    Args:
        data: folder of the text files.
        speech: folder of the lists and lattices; None leaves them out.
        architectures: of the task; None for all.
        device: of torch, where models are trained.

    Raises:
        RecipeError: the task is wrong anywhere, even in the last row.
        DataError: text is missing.
    """
    rows = [read_row(value, where=task.name) for value in task.rows]
    names = [row.name for row in rows]
    _require_distinct("row", names, task)
    _require_matches(names, task)
    decoded = {} if speech is None else _decoded(task, speech)
    benches, by_row = {}, {}
    for architecture in architectures or list(task.architectures):
        bench = _bench(task, architecture, size, data, device)
        benches[architecture] = bench
        of_teacher = Measures.of(bench.teacher, task, decoded)
        for row in rows:
            model = row.model(bench)
            own = Measures.of(model, task, decoded)
            by_row[row.name, architecture] = Cell(architecture, row, model, own, of_teacher)
    cells = tuple(by_row[row.name, architecture] for row in rows for architecture in benches)
    return Plan(task, size, benches, cells)


def _bench(task: Task, architecture: str, size: str, data: Path, device: str) -> Workbench:
    setting = task.setting(architecture, size)
    recipe = task.recipe(architecture, setting, _NO_QUANTIZE)
    if recipe.start:
        fitting_manifest(recipe)
    teacher = FloatStage(recipe, text_stage(recipe, data, setting.cut_lines), device)
    return Workbench.of(setting, teacher, task.default_weights)


def _decoded(task: Task, speech: Path) -> dict[str, SpeechStage]:
    """By name of the lists or lattices."""
    sources = [(one.name, one.file) for one in task.lists]
    sources += [(one.name, one.folder) for one in task.lattices]
    _require_distinct("lists", [name for name, _ in sources], task)
    return {name: SpeechStage.of(speech, path) for name, path in sources}


def _rank(name: str, patterns: Sequence[str]) -> int:
    return next(
        (rank for rank, pattern in enumerate(patterns) if fnmatch.fnmatchcase(name, pattern)),
        len(patterns),
    )


def _require_distinct(what: str, names: Sequence[str], task: Task) -> None:
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise RecipeError(f"{task.name}: {what} {double[0]!r} is there twice; need each name once")


def _require_matches(names: Sequence[str], task: Task) -> None:
    for pattern in task.run_first:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise RecipeError(f"{task.name}: run_first: no row matches {pattern!r}")
