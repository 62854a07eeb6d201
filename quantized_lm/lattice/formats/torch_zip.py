"""The files of `torch.save`, read and written without torch, and no code of a pickle is run.

A zip that is not compressed: data.pkl, and a member with the bytes of each storage. The pickle may
name what makes a tensor, storages of plain numbers, and classes that the caller allows; nothing
else can be called, and none of it can be given another state (torch/serialization.py, version 3).
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError

Name = tuple[str, str]  # module and class
Array = NDArray[Any]

_STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "BoolStorage": "?",
        "ByteStorage": "u1",
        "CharStorage": "i1",
        "ShortStorage": "i2",
        "IntStorage": "i4",
        "LongStorage": "i8",
        "HalfStorage": "f2",
        "FloatStorage": "f4",
        "DoubleStorage": "f8",
    }
)
_WIDER = MappingProxyType({"u2": "i4", "u4": "i8"})  # what torch keeps in other ways
_REBUILD = ("torch._utils", "_rebuild_tensor_v2")
_NO_ZIP = "the file is no zip file as torch.save writes it"
_FOLDER = "archive"
_VERSION = b"3\n"
_PROTOCOL = 2  # of the pickle, as torch writes it


class _Fixed:
    """What a pickle is given and may not change."""

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it changes what it was given")


class Tensor(_Fixed):
    """A tensor of a file.

    Attributes:
        array: its numbers, a view of its storage.
    """

    def __init__(self, array: Array) -> None:
        self.array = array


class _Storage(_Fixed):
    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers


class _StorageType(_Fixed):
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _Rebuild(_Fixed):
    def __call__(
        self, storage: object, offset: object, shape: object, strides: object, *_: object
    ) -> Tensor:
        """A tensor that is as large as its storage says."""
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor has no storage")
        (start,), sizes, steps = _counts((offset,)), _counts(shape), _counts(strides)
        numbers = storage.numbers
        count = int(np.prod([float(size) for size in sizes]))
        last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        if count > numbers.size or (count and last >= numbers.size):
            raise pickle.UnpicklingError(f"a tensor of {sizes} is larger than its storage")
        item = numbers.itemsize
        view = np.ndarray(
            sizes, numbers.dtype, numbers, start * item if count else 0, [s * item for s in steps]
        )
        return Tensor(view)


# Not the unpickler in C, whose memo is an array as long as the largest number that a pickle gives:
# one of five bytes takes gigabytes.
class _Reader(pickle._Unpickler):  # noqa: SLF001
    def __init__(self, archive: zipfile.ZipFile, classes: Mapping[Name, type]) -> None:
        (path,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        super().__init__(io.BytesIO(archive.read(path)))
        self._archive = archive
        self._folder = path.removesuffix("/data.pkl")
        self._known: dict[Name, object] = {
            **classes,
            _REBUILD: _Rebuild(),
            ("collections", "OrderedDict"): OrderedDict,
            **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
        }
        self._storages: dict[str, _Storage] = {}
        order = f"{self._folder}/byteorder"
        is_big = order in archive.namelist() and archive.read(order) == b"big"
        self._order = ">" if is_big else "<"

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}"[:120]) from None

    def persistent_load(self, reference: Any) -> _Storage:
        """The storage that a reference names, read once."""
        kind, storage_type, key, _, count = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if key not in self._storages:
            data = self._archive.read(f"{self._folder}/data/{key}")
            dtype = np.dtype(storage_type.dtype)
            numbers = np.frombuffer(data, f"{self._order}{dtype.str[1:]}")
            if numbers.size != count:
                raise pickle.UnpicklingError(f"storage {key} has {numbers.size} numbers")
            self._storages[key] = _Storage(numbers.astype(dtype, copy=False))
        return self._storages[key]


def _counts(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise pickle.UnpicklingError(f"sizes of a tensor are {values}"[:80])
    return tuple(values)


def read_record(data: bytes, classes: Mapping[Name, type]) -> object:
    """What was saved; a `Tensor` for each tensor.

    Args:
        data: the file.
        classes: that a pickle may name, and what stands for each.

    Raises:
        LatticeError: it is no such file, unpacks to more than it is, or names anything else.
    """
    if not data.startswith(b"PK\3\4"):
        raise LatticeError(_NO_ZIP)
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError):
        raise LatticeError(_NO_ZIP) from None
    with archive:
        _require_plain(archive.infolist(), len(data))
        try:
            record: object = _Reader(archive, classes).load()
        except pickle.UnpicklingError as error:
            why = f"; {error}"
        except Exception:  # noqa: BLE001 - an unpickler raises whatever the bytes lead it to
            why = ""
        else:
            return record
    raise LatticeError(
        f"the pickle is not one of plain tensors and of k2's RaggedTensor and SymbolTable{why}"
    )


def _require_plain(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Refuse what would unpack to more than it is."""
    unpacked = sum(member.file_size for member in members)
    is_packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if is_packed or unpacked > size:
        raise LatticeError(
            f"the file of {size} bytes unpacks to {unpacked}; need one that is not compressed, as "
            "torch.save writes it"
        )


class _Named:
    """Stands in a pickle for something of another library."""

    def __init__(self, name: Name) -> None:
        self.name = name

    def __call__(self) -> NoReturn:
        """Never called: a pickle wants what it names to be callable."""
        raise AssertionError


class _Saved:
    """An array on its way into a file."""

    def __init__(self, array: Array) -> None:
        self.array = np.asarray(array, _WIDER.get(array.dtype.str[1:], array.dtype), order="C")

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        no_hooks: OrderedDict[str, object] = OrderedDict()
        state = (_Bytes(self.array), 0, self.array.shape, strides, False, no_hooks)
        return _Named(_REBUILD), state


class _Bytes:
    """The storage of an array."""

    def __init__(self, array: Array) -> None:
        self.array = array


class _Writer(pickle._Pickler):  # noqa: SLF001 - the one in C names no class that cannot be imported
    def __init__(self, file: io.BytesIO, names: Mapping[type, Name]) -> None:
        super().__init__(file, _PROTOCOL)
        self.storages: list[bytes] = []
        self._names = names

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:  # noqa: FBT001, FBT002
        """An array as a tensor, what stands for something by that thing's name."""
        if isinstance(obj, np.ndarray):
            obj = _Saved(obj)
        if isinstance(obj, _Named):
            return self._write_name(obj.name)
        return super().save(obj, save_persistent_id)  # type: ignore[misc]

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """A class by the name it goes by."""
        if obj in self._names:
            self._write_name(self._names[obj])
        else:
            super().save_global(obj, name)  # type: ignore[misc]

    def persistent_id(self, obj: Any) -> Any:
        """The reference to a storage."""
        if not isinstance(obj, _Bytes):
            return None
        array = obj.array
        kinds = (kind for kind, dtype in _STORAGES.items() if np.dtype(dtype) == array.dtype)
        kind = next(kinds, None)
        if kind is None:
            raise LatticeError(f"torch has no tensors of {array.dtype}")
        self.storages.append(array.tobytes())
        key = str(len(self.storages) - 1)
        return ("storage", _Named(("torch", kind)), key, "cpu", array.size)

    def _write_name(self, name: Name) -> None:
        self.write("c{}\n{}\n".format(*name).encode())  # type: ignore[attr-defined]


def write_record(record: object, names: Mapping[type, Name]) -> bytes:
    """What `torch.load` takes; an array becomes a tensor.

    Args:
        record: of plain values, arrays, and instances of classes in `names`.
        names: what each of these classes is called in the file.

    Raises:
        LatticeError: an array is of numbers that torch does not have.
    """
    buffer = io.BytesIO()
    writer = _Writer(buffer, names)
    writer.dump(record)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member("data.pkl"), buffer.getvalue())
        archive.writestr(_member("byteorder"), sys.byteorder)
        for key, data in enumerate(writer.storages):
            archive.writestr(_member(f"data/{key}"), data)
        archive.writestr(_member("version"), _VERSION)
    return content.getvalue()


def _member(name: str) -> zipfile.ZipInfo:
    """Without the time of day, so that the same record is the same bytes."""
    return zipfile.ZipInfo(f"{_FOLDER}/{name}")
