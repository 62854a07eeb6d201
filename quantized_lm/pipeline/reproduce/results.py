"""What a plan's finished stages say: the numbers of every cell, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantized_lm.pipeline.evaluate import PerplexityReport, compare
from quantized_lm.pipeline.reproduce.plan import Cell, Plan
from quantized_lm.pipeline.reproduce.rows import MixedRow, UniformRow
from quantized_lm.pipeline.reproduce.scores import Split, open_split, read_scores
from quantized_lm.pipeline.reproduce.sizing import num_parameters
from quantized_lm.pipeline.reproduce.speech import (
    LatticesStage,
    ListsStage,
    read_answers,
    read_paths,
)
from quantized_lm.pipeline.reproduce.store import Store
from quantized_lm.pipeline.reproduce.task import Target
from quantized_lm.pipeline.reproduce.word_errors import (
    ListErrors,
    PathAgreement,
    list_errors,
    path_agreement,
)
from quantized_lm.records import content_key

MEASURED, FAILED, NOT_RUN = "measured", "failed", "not run"
_EVEN = 1.01  # sizes this near count as equal


@dataclass(frozen=True)
class Numbers:
    """What was measured of a model.

    Attributes:
        size_bytes: of the weights on disk, everything included.
        compression: float32 bytes of the teacher over that.
        decoded_bits: per weight in memory, where codes are not entropy-coded.
        training_seconds: spent on updates of this model, its teacher's not counted.
        recipe_sha256: of everything that decided the model.
        dev, test: beside the float model.
        lists: word errors. lattices: agreement with the float model.
    """

    size_bytes: int
    compression: float
    bits_per_weight: float
    decoded_bits: float
    training_seconds: float
    recipe_sha256: str
    dev: PerplexityReport
    test: PerplexityReport
    lists: tuple[ListErrors, ...] = ()
    lattices: tuple[PathAgreement, ...] = ()

    @property
    def keeps_wer(self) -> bool:
        """Whether on no lists there are significantly more errors than with the float model."""
        return not any(one.held_out.is_worse for one in self.lists)


@dataclass(frozen=True)
class CellResult:
    """One cell of the table.

    Attributes:
        status: MEASURED, FAILED or NOT_RUN. reason: why it failed.
        stages: folders of what it was made in, the model's last.
        measured_in: folders of what measures it.
        made: when and on what, of a row of an earlier report; empty for one of this run.
    """

    architecture: str
    row: str
    label: str
    method: str
    status: str
    reason: str
    stages: tuple[str, ...]
    numbers: Numbers | None
    measured_in: tuple[str, ...] = ()
    made: str = ""


@dataclass(frozen=True)
class TargetResult:
    """Whether an architecture reaches a target.

    Attributes:
        row: that does best on dev among those that are small enough; empty if none was measured.
        passed: by its numbers on test; None without a row.
    """

    target: Target
    architecture: str
    row: str
    numbers: Numbers | None
    passed: bool | None


@dataclass(frozen=True)
class Comparison:
    """A mixed-precision model beside one of uniform precision trained the same way, on test.

    Attributes:
        nll_difference: mixed minus uniform, nats per token, with its paired 95 % interval.
    """

    architecture: str
    mixed: str
    mixed_bytes: int
    uniform: str
    uniform_bytes: int
    nll_difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Of the difference alone."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "no significant difference"

    @property
    def wins(self) -> bool | None:
        """Better at no more bytes, or worse at no fewer; None where the pair decides nothing."""
        if self.verdict == "better" and self.mixed_bytes <= _EVEN * self.uniform_bytes:
            return True
        if self.verdict == "worse" and self.uniform_bytes <= _EVEN * self.mixed_bytes:
            return False
        return None


class Results:
    """Reads what stages left; runs none.

    Args:
        plan: whose cells are meant.
        store: where they are.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan = plan
        self._store = store
        self._splits: dict[tuple[str, str], Split] = {}
        self.cells = [self._result(cell) for cell in plan.cells]

    def comparisons(self) -> list[Comparison]:
        """Each mixed row with the uniform ones of its method that are next to it in bytes."""
        found = []
        for cell, result in self._measured():
            if isinstance(cell.row.kind, MixedRow):
                found += [self._comparison(cell, result, *other) for other in self._next_to(cell)]
        return found

    def total_seconds(self) -> float:
        """Spent on every stage of the plan so far."""
        stages = {stage.key: stage for cell in self._plan.cells for stage in cell.stages()}
        return sum(self._store.record(stage).seconds for stage in stages.values())

    def _result(self, cell: Cell) -> CellResult:
        stages = cell.stages()
        records = [self._store.record(stage) for stage in stages]
        reasons = [record.reason for record in records if record.status == "failed"]
        status = NOT_RUN
        if all(record.status == "done" for record in records):
            status = MEASURED
        elif reasons:
            status = FAILED
        return CellResult(
            architecture=cell.architecture,
            row=cell.row.name,
            label=cell.row.label,
            method=cell.row.kind.method,
            status=status,
            reason=reasons[0] if status == FAILED else "",
            stages=tuple(self._store.folder(stage).name for stage in cell.model.with_inputs()),
            numbers=self._numbers(cell) if status == MEASURED else None,
            measured_in=tuple(self._store.folder(stage).name for stage in cell.own.last()),
        )

    def _numbers(self, cell: Cell) -> Numbers:
        folder_of = self._store.folder
        bench = self._plan.benches[cell.architecture]
        size_bytes = cell.model.weights_bytes(folder_of)
        recipe = cell.model.recipe_of(folder_of)
        return Numbers(
            size_bytes=size_bytes,
            compression=bench.float_bytes / size_bytes,
            bits_per_weight=8 * size_bytes / num_parameters(recipe),
            decoded_bits=cell.model.decoded_bits(folder_of),
            training_seconds=cell.model.training_seconds(folder_of),
            recipe_sha256=content_key(recipe),
            dev=self._perplexity(cell, "dev"),
            test=self._perplexity(cell, "test"),
            lists=tuple(self._list_errors(cell)),
            lattices=tuple(self._path_agreements(cell)),
        )

    def _list_errors(self, cell: Cell) -> Iterator[ListErrors]:
        for name, stage in cell.own.rescored.items():
            if isinstance(stage, ListsStage):
                both = (stage, cell.of_teacher.rescored[name])
                yield list_errors(name, *(read_answers(self._store.folder(one)) for one in both))

    def _path_agreements(self, cell: Cell) -> Iterator[PathAgreement]:
        for name, stage in cell.own.rescored.items():
            if isinstance(stage, LatticesStage):
                both = (stage, cell.of_teacher.rescored[name])
                yield path_agreement(name, *(read_paths(self._store.folder(one)) for one in both))

    def _perplexity(self, cell: Cell, split: str) -> PerplexityReport:
        scores = read_scores(self._store.folder(cell.own.scores[split]))
        teacher = read_scores(self._store.folder(cell.of_teacher.scores[split]))
        held_out = self._split(cell.architecture, split)
        return compare(
            scores.nats, teacher.nats, held_out.text, backend=scores.backend, words=held_out.words
        )

    def _split(self, architecture: str, split: str) -> Split:
        if (architecture, split) not in self._splits:
            teacher = self._plan.benches[architecture].teacher
            self._splits[architecture, split] = open_split(teacher, split, self._store.folder)
        return self._splits[architecture, split]

    def _measured(self) -> list[tuple[Cell, Numbers]]:
        pairs = zip(self._plan.cells, self.cells, strict=True)
        return [(cell, result.numbers) for cell, result in pairs if result.numbers is not None]

    def _next_to(self, mixed: Cell) -> list[tuple[Cell, Numbers]]:
        """The smallest uniform model of no fewer bytes, and the largest of fewer."""
        of_cell = {cell.name: numbers for cell, numbers in self._measured()}
        size = of_cell[mixed.name].size_bytes
        uniform = [
            (cell, numbers)
            for cell, numbers in self._measured()
            if isinstance(cell.row.kind, UniformRow)
            and cell.architecture == mixed.architecture
            and cell.row.kind.method == mixed.row.kind.method
        ]
        larger = [pair for pair in uniform if pair[1].size_bytes >= size]
        smaller = [pair for pair in uniform if pair[1].size_bytes < size]
        return [
            *sorted(larger, key=lambda pair: pair[1].size_bytes)[:1],
            *sorted(smaller, key=lambda pair: -pair[1].size_bytes)[:1],
        ]

    def _comparison(
        self, mixed: Cell, mixed_numbers: Numbers, uniform: Cell, uniform_numbers: Numbers
    ) -> Comparison:
        held_out = self._split(mixed.architecture, "test")
        nats, other = (
            read_scores(self._store.folder(cell.own.scores["test"])).nats
            for cell in (mixed, uniform)
        )
        report = compare(nats, other, held_out.text, backend="", words=held_out.words)
        return Comparison(
            architecture=mixed.architecture,
            mixed=mixed.row.name,
            mixed_bytes=mixed_numbers.size_bytes,
            uniform=uniform.row.name,
            uniform_bytes=uniform_numbers.size_bytes,
            nll_difference=report.nll_difference,
            low=report.nll_difference_low,
            high=report.nll_difference_high,
        )


def target_results(
    targets: Sequence[Target], architectures: Iterable[str], cells: Sequence[CellResult]
) -> list[TargetResult]:
    """Every target for every architecture; those that no measured cell is of are open."""
    names = list(architectures)
    return [_target_result(target, name, cells) for target in targets for name in names]


def _target_result(target: Target, architecture: str, cells: Sequence[CellResult]) -> TargetResult:
    small = [
        (cell.row, cell.numbers)
        for cell in cells
        if cell.architecture == architecture
        and cell.method
        and cell.numbers is not None
        and cell.numbers.compression >= target.compression
    ]
    if not small:
        return TargetResult(target, architecture, "", None, None)
    row, numbers = min(small, key=lambda pair: pair[1].dev.nll)
    return TargetResult(target, architecture, row, numbers, _passes(target, numbers))


def is_reached(target: Target, results: Sequence[TargetResult]) -> bool | None:
    """Over all architectures; None while that is open."""
    passed = [result.passed for result in results if result.target == target]
    decides = not target.everywhere  # one pass is enough, or one miss
    if decides in passed:
        return decides
    return None if None in passed else not decides


def by_architecture(cells: Sequence[CellResult]) -> Mapping[str, list[CellResult]]:
    """The table's columns."""
    found: dict[str, list[CellResult]] = {}
    for cell in cells:
        found.setdefault(cell.architecture, []).append(cell)
    return found


def _passes(target: Target, numbers: Numbers) -> bool:
    within = numbers.test.perplexity_ratio <= target.max_ratio
    within = within or (target.accepts_interval and numbers.test.nll_difference_low <= 0)
    return within and (numbers.keeps_wer or not target.keeps_wer)
