"""`torch.save(fsa.as_dict(), ...)`, read and written without k2, and no code of a pickle is run.

A pickle may hold tensors, plain values, and k2's RaggedTensor, for which a class here stands; torch
refuses the rest. The only file that imports torch, and only where it reads or writes.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import ReadOptions, require_some
from quantized_lm.lattice.formats.k2_json import parse_ids
from quantized_lm.lattice.formats.k2_lattices import dropped, tensors_of
from quantized_lm.lattice.formats.k2_safetensors import lists_of
from quantized_lm.lattice.formats.k2_tensors import Whole, lattices_of, tensors_of_arcs
from quantized_lm.lattice.lattice import Column, Lattice, Ragged

if TYPE_CHECKING:
    import torch

_KINDS = "iufb"
_RAGGED_MODULE, _RAGGED_NAME = "_k2.ragged", "RaggedTensor"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ONE_AXIS = "row_ids1"  # k2's name of what it did not store; it computes it from the splits


class RaggedState:
    """Stands for k2's RaggedTensor of two axes: (row splits, "row_ids1", values)."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state


def read(data: bytes, options: ReadOptions) -> list[Lattice]:
    """One lattice, or those of an FsaVec.

    Raises:
        LatticeError: it is no such file, holds anything but tensors, or no valid k2 lattice; or
            there is no torch here.
    """
    _require_torch()
    _require_plain_zip(data)
    record = _load(data)
    columns: dict[str, Column | Ragged] = {}
    for name, value in record.items():
        if isinstance(value, RaggedState):
            columns[name] = _lists(name, value)
        elif _is_tensor(value):
            columns[name] = _array(name, value)
    arcs = columns.pop("arcs", None)
    if arcs is None or isinstance(arcs, Ragged):
        raise LatticeError("there is no tensor of arcs", pointer="/arcs")
    texts = {name: value for name, value in record.items() if name in ("id", "ids")}
    return lattices_of(
        tensors_of_arcs(arcs, columns, options), Whole(options, None, parse_ids(texts))
    )


def write(lattices: Sequence[Lattice]) -> bytes:
    """What `k2.Fsa.from_dict(torch.load(...))` takes.

    Raises:
        LatticeError: a score is too large for float32, or there is no torch here.
    """
    _require_torch()
    import torch  # noqa: PLC0415 - heavy, and the other formats do without

    require_some(lattices, at_most_one=False, name="k2-pt")
    tensors = tensors_of(lattices, kinds=_KINDS)
    record: dict[str, object] = {"arcs": torch.from_numpy(tensors.arcs())}
    for name, column in tensors.columns.items():
        if isinstance(column, Ragged):
            ragged = RaggedState()
            values = column.values
            splits = torch.from_numpy(column.splits.copy())
            ragged.state = (splits, _ONE_AXIS, torch.from_numpy(values.copy()))
            record[name] = ragged
        else:
            record[name] = torch.from_numpy(np.ascontiguousarray(column).copy())
    ids = [lattice.utterance for lattice in lattices]
    if any(ids):
        record["id" if len(ids) == 1 else "ids"] = ids[0] if len(ids) == 1 else ids
    return _save(record)


def drops(lattices: Sequence[Lattice]) -> list[str]:
    """Symbols, texts, states' attributes and headers."""
    return dropped(lattices, _KINDS, holds_symbols=False)


class _Pickler(pickle._Pickler):  # noqa: SLF001 - the one in C names no class that cannot be imported
    """Writes `RaggedState` under the name of k2's class."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is RaggedState:
            self.write(f"c{_RAGGED_MODULE}\n{_RAGGED_NAME}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]


def _save(record: Mapping[str, object]) -> bytes:
    import torch  # noqa: PLC0415

    buffer = io.BytesIO()
    module = SimpleNamespace(__name__="pickle", Pickler=_Pickler, dumps=pickle.dumps)
    torch.save(record, buffer, pickle_module=module)
    return buffer.getvalue()


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise LatticeError(
            "the form of torch.save needs torch, which is not installed here; use k2's tensors in "
            "safetensors or JSON, or install secondpass[torch]"
        )


def _require_plain_zip(data: bytes) -> None:
    """Refuse what would unpack to more than it is, and torch's older forms, which are no zip."""
    if not data.startswith(b"PK\3\4"):
        raise LatticeError("the lattice is no zip file as torch.save writes it")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError):
        raise LatticeError("the lattice is no zip file as torch.save writes it") from None
    size = sum(member.file_size for member in members)
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or size > len(data):
        raise LatticeError(
            f"the file of {len(data)} bytes unpacks to {size}; need one that is not compressed, as "
            "torch.save writes it"
        )


def _load(data: bytes) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    known = [(RaggedState, f"{_RAGGED_MODULE}.{_RAGGED_NAME}")]
    # Before torch 2.5 no class can be allowed, and so only plain tensors are read.
    allow = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())
    try:
        with allow(known):
            record = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises whatever the bytes lead it to
        named = _GLOBAL.search(str(error))
        what = f"; it names {named[1][:80]}" if named else ""
        raise LatticeError(
            "the pickle is not one of plain tensors and, from torch 2.5 on, of k2's RaggedTensor"
            f"{what}"
        ) from None
    if not isinstance(record, dict) or not all(isinstance(name, str) for name in record):
        raise LatticeError("the file holds no mapping of names; save fsa.as_dict()")
    return record


def _is_tensor(value: object) -> bool:
    import torch  # noqa: PLC0415

    return isinstance(value, torch.Tensor)


def _array(name: str, tensor: torch.Tensor) -> Column:
    """A tensor that is as large as its storage says, as an array."""
    import torch  # noqa: PLC0415

    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    plain = plain and not tensor.is_quantized and not tensor.is_complex()
    plain = plain and tensor.dtype != torch.bfloat16 and tensor.ndim > 0
    if not plain or tensor.numel() * tensor.element_size() > _storage_bytes(tensor):
        raise LatticeError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}; need a plain tensor, one row per arc",
            pointer=f"/{name}",
        )
    try:
        return tensor.detach().contiguous().numpy()
    except (TypeError, RuntimeError) as error:
        raise LatticeError(f"{name} is no array of numbers ({error})", pointer=f"/{name}") from None


def _storage_bytes(tensor: torch.Tensor) -> int:
    if hasattr(tensor, "untyped_storage"):
        return tensor.untyped_storage().nbytes()
    storage = tensor.storage()  # type: ignore[no-untyped-call]
    return int(storage.nbytes())  # before torch 2.0


def _lists(name: str, ragged: RaggedState) -> Ragged:
    state = ragged.state
    if (
        not isinstance(state, tuple)
        or len(state) != 3
        or state[1] != _ONE_AXIS
        or not (_is_tensor(state[0]) and _is_tensor(state[2]))
    ):
        raise LatticeError(f"{name} is no RaggedTensor of two axes", pointer=f"/{name}")
    return lists_of(name, _array(name, state[0]), _array(name, state[2]))
