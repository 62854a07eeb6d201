"""Rows of the table: each kind says which stages make its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.recipe import QuantizeRecipe
from quantized_lm.pipeline.reproduce.choices import (
    ALLOCATIONS,
    Budget,
    RatesStage,
    sensitivity_stage,
)
from quantized_lm.pipeline.reproduce.kept import KeptStage
from quantized_lm.pipeline.reproduce.models import (
    ArtifactStage,
    FloatStage,
    ModelStage,
    QuantizeStage,
)
from quantized_lm.pipeline.reproduce.sizing import (
    code_bits,
    float_bytes_of,
    widest_within,
)
from quantized_lm.pipeline.reproduce.store import Stage
from quantized_lm.pipeline.reproduce.task import Setting, method_recipe
from quantized_lm.records import build

_COSTS_AT = "2bit"  # the format whose costs rates are made of


@dataclass(frozen=True)
class Workbench:
    """What the rows of one architecture share.

    Attributes:
        teacher: the float model. float_bytes: its weights in float32.
        default_weights: as in `Task`.
    """

    setting: Setting
    teacher: FloatStage
    float_bytes: int
    default_weights: Mapping[str, float]

    @classmethod
    def of(
        cls, setting: Setting, teacher: FloatStage, default_weights: Mapping[str, float]
    ) -> Workbench:
        """For a teacher.

        Raises:
            RecipeError: the model's sizes are not those of its architecture.
        """
        return cls(setting, teacher, float_bytes_of(teacher.recipe), default_weights)

    def artifact(
        self, name: str, quantize: QuantizeRecipe, allocation: Stage | None = None
    ) -> ArtifactStage:
        """A quantized model."""
        student = QuantizeStage(self.teacher, quantize, allocation)
        return ArtifactStage(student, name, self.default_weights)


class RowKind(ABC):
    """A way to make a model. Subclasses are frozen dataclasses of what the task file gives."""

    @abstractmethod
    def model(self, bench: Workbench, name: str) -> ModelStage:
        """What makes the model; a packed one gets this name."""

    @property
    def method(self) -> str:
        """Of quantization; empty for float models."""
        return ""


@dataclass(frozen=True)
class FloatRow(RowKind):
    """The float model itself."""

    def model(self, bench: Workbench, name: str) -> ModelStage:  # noqa: ARG002
        """The teacher."""
        return bench.teacher


@dataclass(frozen=True)
class KeptRow(RowKind):
    """The float model before the end of its training, for the learning curve.

    Attributes:
        share: of its updates.
    """

    share: float

    def model(self, bench: Workbench, name: str) -> ModelStage:  # noqa: ARG002
        """The teacher on its way.

        Raises:
            RecipeError: the teacher's training does not keep these weights.
        """
        plan = bench.setting.train
        step = round(self.share * plan.steps)
        if step not in plan.kept_steps:
            raise RecipeError(
                f"row: share is {self.share}, which is step {step} of {plan.steps}; need a "
                f"multiple of train's keep_every, {plan.keep_every}, before the last"
            )
        return KeptStage(bench.teacher, step)


@dataclass(frozen=True)
class UniformRow(RowKind):
    """One format for all matrices.

    Attributes:
        format: such as "2bit" or "4bit:normal". by: name of a method of the task.
    """

    format: str
    by: str

    @property
    def method(self) -> str:
        """As given."""
        return self.by

    def model(self, bench: Workbench, name: str) -> ModelStage:
        """One student."""
        quantize = method_recipe(bench.setting, self.by, formats={"*": self.format})
        return bench.artifact(name, quantize)


@dataclass(frozen=True)
class MixedRow(RowKind):
    """A format for each matrix, within a budget.

    Attributes:
        metric: key in ALLOCATIONS. by: name of a method of the task.
        compression: the budget is the float32 bytes over this; or
        bytes_of: the bytes that this format takes for all matrices, rounded to nearest.
    """

    metric: str
    by: str
    compression: float = 0.0
    bytes_of: str = ""

    def __post_init__(self) -> None:
        if bool(self.compression) == bool(self.bytes_of):
            raise RecipeError("row: give either compression or bytes_of")
        if self.metric not in ALLOCATIONS:
            known = ", ".join(ALLOCATIONS)
            raise RecipeError(f"row: metric is {self.metric!r}; need one of {known}")

    @property
    def method(self) -> str:
        """As given."""
        return self.by

    def model(self, bench: Workbench, name: str) -> ModelStage:
        """One student, whose formats an allocation decides."""
        budget = Budget(self.compression, self.bytes_of)
        allocation = ALLOCATIONS[self.metric](bench.teacher, bench.setting, budget)
        return bench.artifact(name, method_recipe(bench.setting, self.by, formats={}), allocation)


@dataclass(frozen=True)
class RatedRow(RowKind):
    """Codes at their entropy, as many bits of it as a budget leaves.

    bits = share * (8 * (budget - unpacked bytes) / weights - scale_bits / weights per row)

    Attributes:
        format: of all matrices, whose levels may be more than the bits suggest, such as
            "4bit:quinary"; or
        metric: key in METRICS, by which each matrix gets bits and levels of its own.
        at_rates: measure at several rates, instead of foretelling from 2 bits what others cost.
        by: name of a method of the task; its quantizer takes `bits`.
        compression: the budget is the float32 bytes over this.
        scale_bits: that a row's scale takes on disk; 0 where the method counts the file's bits.
        share: of what is left for codes. Level tables and the coder take a little, clusters of
            rows give some back: what the file then has decides; a method that counts the file's
            bits only has to allow for a rate that is not quite met. shares: by architecture,
            instead.
    """

    by: str
    compression: float
    format: str = ""
    metric: str = ""
    at_rates: bool = False
    scale_bits: float = 16.0
    share: float = 0.995
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.format) == bool(self.metric):
            raise RecipeError("row: give either format or metric")

    @property
    def method(self) -> str:
        """As given."""
        return self.by

    def model(self, bench: Workbench, name: str) -> ModelStage:
        """One student.

        Raises:
            InputError: nothing is left for codes.
        """
        budget = int(bench.float_bytes / self.compression)
        bits = code_bits(bench.teacher.recipe, budget, scale_bits=self.scale_bits)
        share = self.shares.get(bench.teacher.recipe.architecture, self.share)
        bits = round(share * bits, 4)
        if self.metric:
            sensitivity = sensitivity_stage(
                bench.teacher, bench.setting, self.metric, at_rates=self.at_rates
            )
            at = "" if self.at_rates else _COSTS_AT
            rates = RatesStage(sensitivity, at, bits, self.compression)
            return bench.artifact(name, method_recipe(bench.setting, self.by, formats={}), rates)
        formats, settings = {"*": self.format}, {"bits": bits}
        quantize = method_recipe(bench.setting, self.by, formats=formats, settings=settings)
        return bench.artifact(name, quantize)


@dataclass(frozen=True)
class SmallerFloatRow(RowKind):
    """The widest float model whose float32 weights take no more bytes, trained as the teacher was.

    It starts from random weights: a packed model that the teacher started from has other sizes.

    Attributes:
        compression: of the teacher's float32 bytes.
    """

    compression: float

    def model(self, bench: Workbench, name: str) -> ModelStage:  # noqa: ARG002
        """A float model of its own."""
        budget = int(bench.float_bytes / self.compression)
        recipe = replace(widest_within(bench.teacher.recipe, budget), start="")
        return replace(bench.teacher, recipe=recipe)


ROW_KINDS: Mapping[str, type[RowKind]] = MappingProxyType(
    {
        "float": FloatRow,
        "kept": KeptRow,
        "uniform": UniformRow,
        "mixed": MixedRow,
        "rated": RatedRow,
        "smaller_float": SmallerFloatRow,
    }
)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: for programs. label: for readers.
        model_name: of a packed model; "" gives it one after task, architecture and row.
    """

    name: str
    label: str
    kind: RowKind
    model_name: str = ""

    def model(self, bench: Workbench) -> ModelStage:
        """What makes its model.

        Raises:
            RecipeError, InputError: there can be no such model.
        """
        name = self.model_name or f"{bench.teacher.recipe.name}-{self.name}"
        return self.kind.model(bench, name)


def read_row(value: Mapping[str, Any], *, where: str) -> Row:
    """A row as a task file gives it.

    Raises:
        RecipeError: unknown kind, or a field is unknown, missing or of a wrong type.
    """
    fields = dict(value)
    try:
        name, kind, label = fields.pop("name"), fields.pop("kind"), fields.pop("label")
    except KeyError as error:
        raise RecipeError(f"{where}: {dict(value)}: field {error} is missing") from None
    model_name = fields.pop("model_name", "")
    if kind not in ROW_KINDS:
        known = ", ".join(ROW_KINDS)
        raise RecipeError(f"{where}: row {name}: kind is {kind!r}; need one of {known}")
    of_kind = build(ROW_KINDS[kind], fields, where=f"{where}: row {name}", error=RecipeError)
    return Row(name, label, of_kind, model_name)
