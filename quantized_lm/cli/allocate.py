"""`secondpass allocate`: a format for each matrix under a byte budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
import yaml
from rich.bar import Bar
from rich.table import Table

from quantized_lm.cli.console import command, note, out, print_json
from quantized_lm.cli.train import RecipeArgument, RunOption
from quantized_lm.errors import InputError
from quantized_lm.files import write_named
from quantized_lm.models.float_model import FloatModel
from quantized_lm.pipeline.allocate import (
    Allocation,
    allocate,
    manual_allocation,
    rated_allocation,
)
from quantized_lm.pipeline.recipe import Recipe, load_recipe, recipe_with
from quantized_lm.pipeline.search import SearchPlan, search
from quantized_lm.pipeline.sensitivity import CHOICES, measure_joint, read_current
from quantized_lm.pipeline.sizes import SizeTable, packed_size_bytes, size_table
from quantized_lm.pipeline.train import make_model
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers import TRAINED_QUANTIZERS
from quantized_lm.records import write_record

RATED_AT = "2bit"
_RATED, _LEARNED = "rated", "learned"
_FLOAT_BITS = 32
_WIDEST_BITS = 8
_BAR_WIDTH = 16


@dataclass(frozen=True)
class Request:
    """What is to be allocated: the run's folder and the bytes allowed."""

    recipe: Recipe
    folder: Path
    budget_bytes: int


def _measured(metric: str) -> Callable[[Request], Allocation]:
    def method(request: Request) -> Allocation:
        report = read_current(request.recipe, metric, run=request.folder)
        return allocate(report, budget_bytes=request.budget_bytes)

    return method


def _manual(request: Request) -> Allocation:
    sizes = size_table(make_model(request.recipe), CHOICES)
    return manual_allocation(sizes, budget_bytes=request.budget_bytes)


def _nas(request: Request) -> Allocation:
    plan = SearchPlan(request.budget_bytes, CHOICES)
    out = request.folder / f"search-{request.budget_bytes}"
    return search(request.recipe, plan, run=request.folder, out=out).allocation


METHODS: Mapping[str, Callable[[Request], Allocation]] = MappingProxyType(
    {
        "kl": _measured("kl"),
        "hessian": _measured("hessian"),
        "nas": _nas,
        "manual": _manual,
    }
)


@command
def run(  # noqa: PLR0913 - each is an option of the command
    recipe: RecipeArgument,
    run: RunOption = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Bytes of weights.safetensors, or a compression such as 16x."),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Instead: bits per weight with everything counted, such as 2.0."
        ),
    ] = None,
    coded_bits: Annotated[
        float | None,
        typer.Option(
            help="Instead: mean bits per weight of entropy-coded codes, each matrix with a rate of "
            "its own by its costs at several rates (`secondpass sensitivity --formats rates`), or "
            f"else at {RATED_AT}: for `method: rated`."
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "kl",
    *,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the recipe with what was found, ready for `secondpass quantize FILE`.",
        ),
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Also measure KL with all matrices rounded at once.")
    ] = False,
) -> None:
    """Choose a format for each matrix so that the model fits a size and loses least.

    kl and hessian take what `secondpass sensitivity` measured and find the exact minimum of the
    summed cost. nas trains a network that holds every format at once and learns which to keep
    (minutes to hours; it goes on where it was killed). manual protects embedding, first and last
    layer without measuring. The size counts everything in weights.safetensors: codes, scales, level
    tables, norms, biases, the file's header. The last line of output is one JSON object.

    secondpass allocate quantized_lm/recipes/en-small.yaml --budget 16x --write smaller.yaml

    secondpass allocate quantized_lm/recipes/en-small.yaml --coded-bits 2
    """
    settings = load_recipe(recipe)
    folder = run or Path("runs") / settings.name
    if write is not None and write.exists():
        raise InputError(f"{write} exists already; name a new file for --write")
    if metric not in METHODS:
        raise InputError(f"--metric is {metric!r}; need one of {', '.join(METHODS)}")
    model = make_model(settings)
    if coded_bits is not None:
        if budget is not None or bits is not None or joint:
            raise InputError("--coded-bits goes with --metric alone")
        fields = _allocate_rates(settings, folder, metric, model, coded_bits)
        _write(recipe, fields, write)
        return
    sizes = size_table(model, CHOICES)
    found = METHODS[metric](Request(settings, folder, _budget_bytes(budget, bits, sizes)))
    path = folder / "allocations" / f"{metric}-{found.budget_bytes}.json"
    write_record(path, found)
    out().print(_table(found, model))
    record = {"path": str(path), "compression": found.compression, **asdict(found)}
    if joint:
        together = measure_joint(settings, found.formats, run=folder)
        note(f"all at once: KL {together.mean:.4g} +- {together.standard_error:.2g} nats/token")
        record["joint_kl"] = asdict(together)
    note(f"{path} is written")
    print_json(record)
    method = settings.quantize.method
    fields = {"method": _LEARNED if method == _RATED else method}  # rates would undo the formats
    formats = {"formats": dict(found.formats), "overrides": {}}
    _write(recipe, fields | _settings(settings, fields["method"]) | formats, write)


def _write(recipe: Path, fields: Mapping[str, Any], to: Path | None) -> None:
    """Write the recipe with these fields of `quantize`, or say what they are."""
    if to is None:
        note("for the recipe's `quantize`, or with --write FILE for a whole recipe:")
        note(yaml.safe_dump(dict(fields), sort_keys=False, default_flow_style=None, width=100))
        return
    write_named(to, recipe_with(recipe, fields))
    note(f"{to} is written; next: secondpass quantize {to}")


def _allocate_rates(
    recipe: Recipe, folder: Path, metric: str, model: FloatModel, bits: float
) -> dict[str, Any]:
    """Find rates, show them, and return what a recipe's `quantize` says of them."""
    report = read_current(recipe, metric, run=folder)
    weights = {name: model.get_parameter(name).numel() for name in report.costs}
    found = rated_allocation(report, weights, at=RATED_AT, bits=bits)
    path = folder / "allocations" / f"{metric}-rates-{bits:g}.json"
    write_record(path, found)
    table = Table("matrix", "format", "coded bits", "")
    for name, rate in found.rates.items():
        bar = Bar(_WIDEST_BITS, 0, rate, width=_BAR_WIDTH)
        table.add_row(name, found.formats[name], f"{rate:.3f}", bar)
    out().print(table)
    note(f"{path} is written")
    print_json({"path": str(path), **asdict(found)})
    return {
        "method": _RATED,
        **_settings(recipe, _RATED),
        "formats": dict(found.formats),
        "overrides": {name: {"bits": round(rate, 3)} for name, rate in found.rates.items()},
    }


def _settings(recipe: Recipe, method: str) -> dict[str, Any]:
    """The recipe's settings that this method has too, but for bits, which are allocated."""
    fields = dataclasses.fields(TRAINED_QUANTIZERS[method].settings)
    known = {field.name for field in fields} - {"bits"}
    kept = {name: value for name, value in recipe.quantize.settings.items() if name in known}
    return {"settings": kept}


def _budget_bytes(budget: str | None, bits: float | None, sizes: SizeTable) -> int:
    """Bytes allowed, of a number, a compression or bits per weight."""
    if (budget is None) == (bits is None):
        raise InputError(
            "the budget is missing or there are two; need --budget, --bits or --coded-bits"
        )
    if bits is not None:
        value = sizes.float_bytes * bits / _FLOAT_BITS
        if not math.isfinite(value):
            raise InputError(f"--bits is {bits}; need bits per weight, such as 2.0")
        return int(value)
    assert budget is not None
    try:
        value = float(budget.removesuffix("x"))
        return int(sizes.float_bytes / value if budget.endswith("x") else value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(
            f"--budget is {budget!r}; need bytes, such as 1000000, or a compression, such as 16x"
        ) from None


def _table(found: Allocation, model: FloatModel) -> Table:
    """Bits by matrix, scales and level tables included."""
    table = Table(
        title=f"{found.metric}: {found.size_bytes:,} of {found.budget_bytes:,} bytes, "
        f"{found.compression:.2f}x, {_FLOAT_BITS / found.compression:.3f} bits per weight"
    )
    table.add_column("matrix", no_wrap=True)
    table.add_column("format")
    for heading in ("shape", "bytes", "bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for name, choice in found.formats.items():
        num_rows, num_columns = model.get_parameter(name).shape
        size = packed_size_bytes((num_rows, num_columns), Grid.parse(choice))
        bits = 8 * size / (num_rows * num_columns)
        bar = Bar(_WIDEST_BITS, 0, bits, width=_BAR_WIDTH)
        table.add_row(name, choice, f"{num_rows} x {num_columns}", f"{size:,}", f"{bits:.3f}", bar)
    return table
