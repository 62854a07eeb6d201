"""weights.safetensors: all tensors of a model as bytes and back. Knows no models and no folders.

Format version 2 has five arrays at most, each of all tensors of its kind end to end, in the order
of their names (every array costs about 90 bytes of header, near 1 % of a small matrix):

    float32  F32  what stays unpacked
    words    U32  of tensors that are stored plain, as QuantizedTensor has them, and so
    scale    F16  that words can be mapped
    levels   I8
    coded    U8   of tensors stored at their entropy (quant/entropy.py)

Version 1 has NAME.words, NAME.scale and NAME.levels for a packed tensor, NAME for another.
What each tensor is stands in the manifest, as TensorEntry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from quantized_lm.errors import FormatError
from quantized_lm.quant import entropy
from quantized_lm.quant.formats import get_format
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.tensor_entry import FLOAT_BYTES, FLOATS, TensorEntry

AUTO = "auto"
_HEADER_ALIGNMENT = 8

Arrays = Mapping[str, NDArray[Any]]
Packed = Mapping[str, QuantizedTensor]
Floats = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Stored:
    """A model's tensors as a file.

    Attributes:
        content: of weights.safetensors, format version 2.
        entries: what the manifest says of them, packed tensors first.
    """

    content: bytes
    entries: dict[str, TensorEntry]


@dataclass(frozen=True)
class Restored:
    """A model's tensors out of a file."""

    packed: dict[str, QuantizedTensor]
    plain: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class _Written:
    """Tensors as arrays, and what each takes in them."""

    arrays: Arrays
    size_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Coding:
    """A way of storing packed tensors.

    Attributes:
        write: tensors, by name in order, to arrays.
        read: the reverse, given the entries in the same order.
    """

    write: Callable[[Packed], _Written]
    read: Callable[[Arrays, Mapping[str, TensorEntry]], dict[str, QuantizedTensor]]


def store(packed: Packed, plain: Floats, coding: str = AUTO) -> Stored:
    """Lay all tensors out as a file.

    Args:
        packed, plain: tensors by name; a name is in one of them.
        coding: key of CODINGS, or "auto": the smallest file of those in one coding and that with
            each tensor in its smallest.

    Raises:
        FormatError: there is no such coding.
    """
    if coding != AUTO:
        return _store(packed, plain, dict.fromkeys(packed, coding))
    files = [_store(packed, plain, dict.fromkeys(packed, key)) for key in CODINGS]
    choice = {}
    for name in packed:
        smallest = min((file.entries[name] for file in files), key=lambda entry: entry.size_bytes)
        choice[name] = smallest.coding
    if len(set(choice.values())) > 1:
        files.append(_store(packed, plain, choice))
    return min(files, key=lambda file: len(file.content))


def restore(content: bytes, entries: Mapping[str, TensorEntry], version: int) -> Restored:
    """Undo `store`.

    Args:
        entries: as the manifest has them; their shapes bound the memory this takes.
        version: of the format, 1 or 2.

    Raises:
        FormatError: the content is no safetensors file, does not fit the entries, or an unpacked
            tensor holds NaN or infinity.
    """
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, KeyError) as error:  # numpy has not every type of number
        raise FormatError(f"weights.safetensors cannot be parsed ({error})") from None
    restored = _READERS[version](arrays, entries)
    for name, array in restored.plain.items():
        if not np.isfinite(array).all():
            raise FormatError(f"tensor {name!r} holds NaN or infinity; need finite numbers")
    return restored


def weights_bytes(packed: Packed, plain: Floats, coding: str = AUTO) -> int:
    """Size of the file that `store` makes, header and all."""
    return len(store(packed, plain, coding).content)


def tensor_bytes(tensor: QuantizedTensor, coding: str = AUTO) -> int:
    """What one tensor adds to the file's arrays, whatever else is in them.

    A file in one coding is all of these, four bytes for each unpacked weight, and a few hundred
    bytes of header and checksum.

    Args:
        coding: key of CODINGS, or "auto" for the smallest.

    Raises:
        FormatError: there is no such coding.
    """
    rows = CODINGS.values() if coding == AUTO else [_coding(coding)]
    return min(row.write({"": tensor}).size_bytes[""] for row in rows)


def float_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Size of the safetensors file of such float32 tensors, header and all."""
    header: dict[str, Any] = {}
    start = 0
    for name in sorted(shapes):
        end = start + FLOAT_BYTES * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [start, end]}
        start = end
    size = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return _HEADER_ALIGNMENT + -(-size // _HEADER_ALIGNMENT) * _HEADER_ALIGNMENT + start


def _store(packed: Packed, plain: Floats, choice: Mapping[str, str]) -> Stored:
    """A file with each packed tensor in the coding that is chosen for it."""
    arrays: dict[str, NDArray[Any]] = {}
    entries: dict[str, TensorEntry] = {}
    for key in sorted(set(choice.values())):
        tensors = {name: packed[name] for name in sorted(packed) if choice[name] == key}
        written = _coding(key).write(tensors)
        arrays.update(written.arrays)
        for name, tensor in tensors.items():
            entries[name] = _entry(tensor, key, written.size_bytes[name])
    if plain:
        floats = [plain[name].reshape(-1) for name in sorted(plain)]
        arrays[FLOATS] = np.concatenate(floats).astype(np.float32, copy=False)
    entries = {name: entries[name] for name in packed} | {
        name: TensorEntry(FLOATS, array.shape, 0, array.size * FLOAT_BYTES, 32.0)
        for name, array in plain.items()
    }
    return Stored(safetensors.numpy.save(arrays), entries)


def _entry(tensor: QuantizedTensor, coding: str, size_bytes: int) -> TensorEntry:
    return TensorEntry(
        tensor.format,
        tensor.shape,
        tensor.group_size,
        size_bytes,
        8 * size_bytes / math.prod(tensor.shape),
        coding,
        len(tensor.levels),
    )


def _write_plain(packed: Packed) -> _Written:
    tensors = packed.values()
    return _Written(
        {
            "words": np.concatenate([tensor.words.reshape(-1) for tensor in tensors]),
            "scale": np.concatenate([tensor.scale.reshape(-1) for tensor in tensors]),
            "levels": np.concatenate([tensor.levels for tensor in tensors]),
        },
        {name: tensor.size_bytes for name, tensor in packed.items()},
    )


def _read_plain(arrays: Arrays, entries: Mapping[str, TensorEntry]) -> dict[str, QuantizedTensor]:
    words = _Pieces(arrays, "words", np.uint32)
    scale = _Pieces(arrays, "scale", np.float16)
    levels = _Pieces(arrays, "levels", np.int8)
    tensors = {}
    for name, entry in entries.items():
        with entropy.naming(name):
            form = _form(entry)
            num_rows, num_columns = form.shape
            tensors[name] = QuantizedTensor(
                form.format,
                form.shape,
                form.group_size,
                words.take((num_rows, get_format(form.format).words_per_row(num_columns))),
                scale.take((num_rows, form.num_scales // num_rows)),
                levels.take((form.num_levels,)),
            )
    for pieces in (words, scale, levels):
        pieces.close()
    return tensors


def _write_coded(packed: Packed) -> _Written:
    coded = entropy.encode(packed)
    return _Written({"coded": np.frombuffer(coded.data, np.uint8)}, coded.size_bytes)


def _read_coded(arrays: Arrays, entries: Mapping[str, TensorEntry]) -> dict[str, QuantizedTensor]:
    forms = {}
    for name, entry in entries.items():
        with entropy.naming(name):
            forms[name] = _form(entry)
    return entropy.decode(_array(arrays, "coded", np.uint8).tobytes(), forms)


CODINGS: Mapping[str, Coding] = MappingProxyType(
    {"": Coding(_write_plain, _read_plain), "rans": Coding(_write_coded, _read_coded)}
)


def _coding(name: str) -> Coding:
    if name not in CODINGS:
        known = ", ".join(map(repr, CODINGS))
        raise FormatError(f"no coding is named {name!r}; known are {known}")
    return CODINGS[name]


def _read_named(arrays: Arrays, entries: Mapping[str, TensorEntry]) -> Restored:
    """Format version 1."""
    restored = Restored({}, {})
    for name, entry in entries.items():
        if entry.group_size == 0:
            restored.plain[name] = _array(arrays, name, np.float32)
            continue
        with entropy.naming(name):
            restored.packed[name] = QuantizedTensor(
                entry.format,
                entry.matrix_shape,
                entry.group_size,
                _array(arrays, f"{name}.words", np.uint32),
                _array(arrays, f"{name}.scale", np.float16),
                _array(arrays, f"{name}.levels", np.int8),
            )
    return restored


def _read_joined(arrays: Arrays, entries: Mapping[str, TensorEntry]) -> Restored:
    """Format version 2."""
    unpacked: dict[str, TensorEntry] = {}
    by_coding: dict[str, dict[str, TensorEntry]] = {}
    for name in sorted(entries):
        entry = entries[name]
        group = by_coding.setdefault(entry.coding, {}) if entry.group_size else unpacked
        group[name] = entry
    rows = {coding: _coding(coding) for coding in by_coding}
    restored = Restored({}, _read_floats(arrays, unpacked) if unpacked else {})
    for coding, group in by_coding.items():
        restored.packed.update(rows[coding].read(arrays, group))
    return restored


def _read_floats(
    arrays: Arrays, entries: Mapping[str, TensorEntry]
) -> dict[str, NDArray[np.float32]]:
    floats = _Pieces(arrays, FLOATS, np.float32)
    plain = {}
    for name, entry in entries.items():
        with entropy.naming(name):
            plain[name] = floats.take(entry.shape)
    floats.close()
    return plain


_READERS: Mapping[int, Callable[[Arrays, Mapping[str, TensorEntry]], Restored]] = MappingProxyType(
    {1: _read_named, 2: _read_joined}
)


def _form(entry: TensorEntry) -> entropy.TensorForm:
    return entropy.TensorForm(entry.format, entry.matrix_shape, entry.group_size, entry.num_levels)


def _array(arrays: Arrays, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    array = arrays.get(name)
    if array is None or array.dtype != dtype:
        got = "missing" if array is None else array.dtype
        raise FormatError(f"array {name!r} is {got}; need {np.dtype(dtype).name}")
    return array


class _Pieces:
    """Arrays that lie end to end in one."""

    def __init__(self, arrays: Arrays, name: str, dtype: type[np.generic]) -> None:
        self._name, self._array = name, _array(arrays, name, dtype).reshape(-1)
        self._at = 0

    def take(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """The next piece."""
        end = self._at + math.prod(shape)
        if end > len(self._array):
            raise FormatError(
                f"array {self._name!r} has {len(self._array)} numbers; need {end} for {shape}"
            )
        piece = self._array[self._at : end].reshape(shape)
        self._at = end
        return piece

    def close(self) -> None:
        """Refuse numbers that belong to no tensor."""
        if self._at != len(self._array):
            raise FormatError(
                f"array {self._name!r} has {len(self._array)} numbers; need {self._at}"
            )
