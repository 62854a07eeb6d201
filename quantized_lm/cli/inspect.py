"""`secondpass inspect`: what a packed model, or a lattice, is made of and where it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.bar import Bar
from rich.table import Table

from quantized_lm.artifact import DEFAULT_MODEL, load_artifact, model_folder
from quantized_lm.cli.console import command, out, print_json, refuse_unused
from quantized_lm.cli.devices import DeviceOption
from quantized_lm.cli.inspect_lattice import InspectedLattice, inspect_lattice
from quantized_lm.cli.lattice_options import (
    MAX_ARCS,
    MaxArcsOption,
    SymbolsOption,
    named_format,
    named_symbols,
)
from quantized_lm.errors import DataError
from quantized_lm.files import require_file_name
from quantized_lm.lattice.files import names_lattice
from quantized_lm.lattice.formats import ReadOptions
from quantized_lm.manifest import Manifest, read_manifest
from quantized_lm.ops import AUTO
from quantized_lm.quant.formats import FORMATS
from quantized_lm.tensor_entry import TensorEntry

_BAR_WIDTH = 14


@command
def run(  # noqa: PLR0913 - each is an option of the command
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", help=f"Model folder, or file of lattices. [default: {DEFAULT_MODEL}]"
        ),
    ] = None,
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also check every hash and the golden scores.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The manifest as one JSON object.")
    ] = False,
    lattice_format: Annotated[
        str | None, typer.Option("--format", help="PATH is lattices in this format.")
    ] = None,
    symbols: SymbolsOption = None,
    max_arcs: MaxArcsOption = MAX_ARCS,
    plot: Annotated[
        Path | None, typer.Option(help="Draw a small lattice: .dot, or .svg, .png, .pdf.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; the lattice is also drawn rescored.")
    ] = None,
    device: DeviceOption = AUTO,
) -> None:
    """Bits per tensor, sizes, compression against float32, and provenance of a packed model.

    Of lattices: states, arcs and scores, and a drawing of one with up to 200 arcs.

    Bits per weight count everything stored: scales, level tables, norms, biases, embeddings.
    Tensors that are stored at their entropy have more bits once loaded: "packed".

    secondpass inspect

    secondpass inspect models/en-small --verify

    secondpass inspect u1.slf.gz --plot u1.svg --model models/en-small
    """
    if folder is not None and (lattice_format is not None or _is_lattice(folder)):
        refuse_unused(context, _unused_of_lattices(plot, model))
        if plot is not None:
            require_file_name(plot, folder, symbols)
        reading = ReadOptions(symbols=named_symbols(symbols), max_arcs=max_arcs)
        given = named_format(lattice_format)
        loaded = None
        if model is not None and plot is not None:
            loaded = load_artifact(model_folder(model), device=device)
        inspect_lattice(InspectedLattice(folder, given, reading, plot), loaded, out())
        return
    if plot is not None:
        raise DataError(f"{folder or DEFAULT_MODEL}: is no lattice by its name; --plot needs one")
    if folder is not None and folder.is_file():
        raise DataError(f"{folder}: is no lattice by its name; --format says in which one it is")
    refuse_unused(context, _unused_of_models(folder, verify=verify))
    path = model_folder(folder)
    manifest = read_manifest(path)
    if verify:
        load_artifact(path, device=device)
    if as_json:
        print_json(asdict(manifest))
        return
    console = out()
    console.print(_tensors(manifest))
    lines = {
        "name": f"{manifest.name} ({manifest.architecture}, sha256:{manifest.sha256[:12]})",
        "parameters": f"{manifest.parameters:,}",
        "bits per weight": f"{manifest.bits_per_weight:.3f}{_packed_bits(manifest)}",
        "size": f"{_bytes(manifest.size_bytes)} (weights {_bytes(manifest.weights_bytes)})",
        "compression": f"{manifest.compression:.1f}x (float32 weights would be "
        f"{_bytes(round(manifest.compression * manifest.weights_bytes))})",
        "longest text": f"{manifest.max_tokens - 1} tokens",  # without `</s>`, as in /v1/limits
        "text": json.dumps(asdict(manifest.text)),
        "default weights": json.dumps(manifest.default_weights),
        "license": manifest.license,
        "verified": "hashes and golden scores" if verify else "manifest only (--verify for all)",
    }
    for label, value in {**lines, **_flat("provenance", manifest.provenance)}.items():
        console.print(f"{label:<16} {value}", soft_wrap=True)


def _unused_of_lattices(plot: Path | None, model: Path | None) -> dict[str, str]:
    """The options that do nothing for lattices, and what each of them needs."""
    unused = dict.fromkeys(("verify", "as_json"), "a model folder, and PATH is lattices")
    if plot is None:
        unused["model"] = "--plot: it is for the drawing"
    if model is None:
        unused["device"] = "--model, which runs on it"
    return unused


def _unused_of_models(folder: Path | None, *, verify: bool) -> dict[str, str]:
    """The options that do nothing for a model, and what each of them needs."""
    what = f"lattices, and {folder or DEFAULT_MODEL} is none by its name"
    unused = dict.fromkeys(("lattice_format", "symbols", "max_arcs", "model"), what)
    if not verify:
        unused["device"] = "--verify, which runs on it"
    return unused


def _is_lattice(path: Path) -> bool:
    return not path.is_dir() and names_lattice(path)


def _tensors(manifest: Manifest) -> Table:
    table = Table(title=f"{manifest.name}: tensors")
    table.add_column("tensor", no_wrap=True)
    table.add_column("format")
    is_coded = _is_coded(manifest)
    for heading in ("shape", "bits", *(["packed"] if is_coded else []), "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("share")
    largest = max((entry.size_bytes for entry in manifest.tensors.values()), default=1)
    for name, entry in manifest.tensors.items():
        table.add_row(
            name,
            _format(entry),
            " x ".join(str(length) for length in entry.shape),
            f"{entry.bits_per_weight:.3f}",
            *([f"{entry.packed_bits_per_weight:.3f}"] if is_coded else []),
            _bytes(entry.size_bytes),
            Bar(largest, 0, entry.size_bytes, width=_BAR_WIDTH),
        )
    return table


def _is_coded(manifest: Manifest) -> bool:
    return any(entry.coding for entry in manifest.tensors.values())


def _packed_bits(manifest: Manifest) -> str:
    """What bits per weight become once the model is loaded, if that is another number."""
    if not _is_coded(manifest):
        return ""
    return f" on disk, {manifest.packed_bits_per_weight:.3f} packed in memory"


def _format(entry: TensorEntry) -> str:
    """The format, and how many levels it has where that is not all of them."""
    if not entry.num_levels or entry.num_levels == FORMATS[entry.format].num_levels:
        return entry.format
    return f"{entry.format}, {entry.num_levels} levels"


def _flat(name: str, value: object) -> dict[str, str]:
    """Nested mappings as "name.key.key" -> text; of a learning curve only its end."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        return _flat(f"{name}[-1]", value[-1])
    if isinstance(value, Mapping):
        return {
            label: text
            for key, item in value.items()
            for label, text in _flat(f"{name}.{key}", item).items()
        }
    return {name: value if isinstance(value, str) else json.dumps(value)}


def _bytes(size: int) -> str:
    if size < 1 << 10:
        return f"{size} B"
    return f"{size / (1 << 10):.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.2f} MiB"
