"""k2's tensors as safetensors.

"arcs" int32 (E, 4), or the row of an FsaVec; "aux_labels" int32 (E,), or for lists
"aux_labels.row_splits" (E + 1,) and "aux_labels.values"; "lm_scores"; any others with one row per
arc. The metadata may hold "symbols" and "ids" as JSON, and "id".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import ReadOptions, require_some
from quantized_lm.lattice.formats.k2_json import parse_ids, parse_symbols
from quantized_lm.lattice.formats.k2_lattices import dropped, tensors_of
from quantized_lm.lattice.formats.k2_tensors import (
    Whole,
    lattices_of,
    lists_of,
    tensors_of_arcs,
)
from quantized_lm.lattice.lattice import Column, Lattice, Ragged
from quantized_lm.lattice.symbols import with_one_table

_KINDS = "iufb"
_SPLITS, _VALUES = ".row_splits", ".values"


def read(data: bytes, options: ReadOptions) -> list[Lattice]:
    """One lattice, or those of an FsaVec.

    Raises:
        LatticeError: it is no safetensors file, or no valid k2 lattice.
    """
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LatticeError(
            f"the lattice is no safetensors file that numpy reads ({error})"
        ) from None
    if "arcs" not in tensors:
        raise LatticeError("there is no tensor of arcs", pointer="/arcs")
    arcs = tensors.pop("arcs")
    metadata = _metadata(data)
    whole = Whole(options, parse_symbols(metadata.get("symbols")), parse_ids(metadata))
    return lattices_of(tensors_of_arcs(arcs, _columns(tensors), options), whole)


def write(lattices: Sequence[Lattice]) -> bytes:
    """One file; scores as float32, the rest as it is.

    Raises:
        LatticeError: a score is too large for float32.
    """
    require_some(lattices, at_most_one=False, name="k2-safetensors")
    lattices = with_one_table(lattices)
    tensors = tensors_of(lattices, kinds=_KINDS)
    arrays: dict[str, Column] = {"arcs": tensors.arcs()}
    for name, column in tensors.columns.items():
        if isinstance(column, Ragged):
            arrays[name + _SPLITS] = column.splits
            arrays[name + _VALUES] = column.values
        else:
            arrays[name] = column
    ids = [lattice.utterance for lattice in lattices]
    metadata = {}
    if lattices[0].symbols is not None:
        metadata["symbols"] = json.dumps(
            {str(key): word for key, word in lattices[0].symbols.items()}
        )
    if any(ids):
        metadata["id" if len(ids) == 1 else "ids"] = ids[0] if len(ids) == 1 else json.dumps(ids)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return _with_sorted_header(save(contiguous, metadata or None))


def drops(lattices: Sequence[Lattice]) -> list[str]:
    """Texts, states' attributes and headers."""
    return dropped(lattices, _KINDS, holds_symbols=True)


def _columns(tensors: Mapping[str, Column]) -> dict[str, Column | Ragged]:
    """Tensors of one row per arc, and pairs of splits and values."""
    columns: dict[str, Column | Ragged] = {}
    for name, tensor in tensors.items():
        if name.endswith(_SPLITS) and name[: -len(_SPLITS)] + _VALUES in tensors:
            stem = name[: -len(_SPLITS)]
            columns[stem] = lists_of(stem, tensor, tensors[stem + _VALUES])
        elif not (name.endswith(_VALUES) and name[: -len(_VALUES)] + _SPLITS in tensors):
            _require_whole(name)
            if not tensor.ndim:
                raise LatticeError(f"{name} is one number; need one per arc", pointer=f"/{name}")
            columns[name] = tensor
    return columns


def _require_whole(name: str) -> None:
    """Refuse half of a pair, whose other half may be there under a name that nothing reads."""
    stem, _, part = name.rpartition(".")
    if stem and (f".{part}" in (_SPLITS, _VALUES) or stem in ("aux_labels", "lm_scores")):
        raise LatticeError(
            f"{name} stands alone; need {stem}, or {stem}{_SPLITS} and {stem}{_VALUES}",
            pointer=f"/{name}",
        )


def _with_sorted_header(content: bytes) -> bytes:
    """The same file with its header in one order; safetensors writes metadata in any."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def _metadata(data: bytes) -> dict[str, object]:
    """The texts beside the tensors, with what is JSON among them parsed."""
    length = int.from_bytes(data[:8], "little")
    texts = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    result: dict[str, object] = dict(texts)
    for name in ("symbols", "ids"):
        if name in texts:
            try:
                result[name] = json.loads(texts[name])
            except (ValueError, RecursionError):
                raise LatticeError(
                    f"{name} in the metadata is no JSON", pointer=f"/{name}"
                ) from None
    return result
