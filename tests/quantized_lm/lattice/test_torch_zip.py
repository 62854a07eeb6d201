"""Files of `torch.save` without torch: what torch writes is read, what is written torch reads."""

from __future__ import annotations

import io
import pickle
import resource
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.torch_zip import Tensor, read_record, write_record

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def saved(record: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(record, buffer)
    return buffer.getvalue()


def read_tensor(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    record = read_record(saved({"a": tensor}), {})
    assert isinstance(record, dict)
    assert isinstance(record["a"], Tensor)
    return record["a"].array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (3, 4, 2)])
def test_plain_tensors_are_read_as_torch_has_them(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(-3, 4, shape).astype(dtype)
    found = read_tensor(torch.from_numpy(np.asarray(array)))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(24)[5:9],
        torch.arange(24).reshape(4, 6).t(),
        torch.arange(24).reshape(2, 3, 4).transpose(0, 2)[1:, :, 1:],
        torch.arange(24)[::7],
        torch.arange(24)[3],
        torch.arange(3).expand(1, 3),
    ],
)
def test_views_of_a_storage_are_read(view: torch.Tensor) -> None:
    assert np.array_equal(read_tensor(view), view.numpy())


def test_tensors_may_share_a_storage() -> None:
    whole = torch.arange(6.0)
    record = read_record(saved([whole, whole[2:], {"again": whole}]), {})
    assert isinstance(record, list)
    assert [record[0].array.tolist(), record[1].array.tolist()] == [
        [0, 1, 2, 3, 4, 5],
        [2, 3, 4, 5],
    ]
    assert record[2]["again"] is record[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4)])
def test_torch_reads_what_is_written(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(-3, 4, shape).astype(dtype)
    record = {"a": array, "id": "x", "n": [1, 2.5, None, True], "again": array.T}
    loaded = torch.load(io.BytesIO(write_record(record, {})), weights_only=True)
    assert np.array_equal(loaded["a"].numpy(), array)
    assert np.array_equal(loaded["again"].numpy(), array.T)
    assert (loaded["id"], loaded["n"]) == ("x", [1, 2.5, None, True])


def test_numbers_that_torch_keeps_otherwise_are_widened_or_refused() -> None:
    array = np.array([1, 2**32 - 1], np.uint32)
    loaded = torch.load(io.BytesIO(write_record([array], {})), weights_only=True)
    assert loaded[0].tolist() == array.tolist()
    with pytest.raises(LatticeError, match="no tensors of complex64"):
        write_record([np.zeros(1, np.complex64)], {})


def test_numbers_in_the_other_byte_order_are_turned() -> None:
    content = changed(saved({"a": torch.tensor([1, 258])}), {"byteorder": b"big"})
    record = read_record(content, {})
    assert isinstance(record, dict)
    turned = [int.from_bytes(number.to_bytes(8, "little"), "big") for number in (1, 258)]
    assert record["a"].array.tolist() == turned


def changed(content: bytes, members: dict[str, bytes]) -> bytes:
    """A file with other members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.partition("/")[2], old.read(name)))
    return buffer.getvalue()


def with_pickle(program: bytes) -> bytes:
    """A file whose pickle is this program; its storage 0 has two int64 numbers."""
    return changed(saved({"a": torch.tensor([1, 2])}), {"data.pkl": program})


STORAGE = b"(X\x07\0\0\0storagectorch\nLongStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x02tQ"
REBUILD = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"


def rebuilt(arguments: bytes) -> bytes:
    return REBUILD + b"(" + STORAGE + arguments + b"tR"


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(X\x04\0\0\0truetR.",
        b"cbuiltins\neval\n.",
        b"cnumpy\ndtype\n.",
        b"ctorch\nUntypedStorage\n.",
        b"\x80\x02\x82\x01.",  # an extension
        rebuilt(b"K\0K\x03\x85K\x01\x85\x89)") + b".",  # three of two numbers
        rebuilt(b"K\x01K\x02\x85K\x01\x85\x89)") + b".",  # from the second on
        rebuilt(b"K\0K\x01\x85J\xff\xff\xff\xff\x85\x89)") + b".",  # a step of -1
        rebuilt(b"J\xff\xff\xff\xffK\x01\x85K\x01\x85\x89)") + b".",  # from before the first
        rebuilt(b"K\0M\xff\xff\x85K\0\x85\x89)") + b".",  # one number 65,535 times
        rebuilt(b"K\0K\x02\x85)\x89)") + b".",  # without steps
        rebuilt(b"K\0K\x02\x85K\x01\x85\x89)") + b"}X\x05\0\0\0arrayK\x01sb.",  # another state
        b"\x80\x02" + STORAGE + b"}X\x07\0\0\0numbersK\x01sb.",
        b"ctorch\nLongStorage\n}X\x05\0\0\0dtypeX\x01\0\0\0Osb.",
        REBUILD + b"}X\x01\0\0\0aK\x01sb.",
        b"ccollections\nOrderedDict\n}X\x01\0\0\0aK\x01sb.",  # of the class
        REBUILD + b"(K\x01K\0K\x02\x85K\x01\x85\x89)tR.",  # a number for a storage
        b"(X\x07\0\0\0storageK\x01X\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x02tQ.",
        b"(X\x07\0\0\0storagectorch\nLongStorage\nX\x01\0\0\0" + b"9X\x03\0\0\0cpuK\x02tQ.",
        b"(X\x07\0\0\0storagectorch\nLongStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x03tQ.",
        b"",
        b"\x80\x02",
        b"\x80\x02(((((((",
    ],
)
def test_a_program_that_does_anything_else_is_refused(program: bytes) -> None:
    with pytest.raises(LatticeError, match="not one of plain tensors"):
        read_record(with_pickle(program), {})
    with pytest.raises(LatticeError, match="not one of plain tensors"):
        read_record(with_pickle(program + b"."), {})


def test_the_programs_above_fail_for_what_they_do() -> None:
    record = read_record(with_pickle(rebuilt(b"K\0K\x02\x85K\x01\x85\x89)") + b"."), {})
    assert isinstance(record, Tensor)
    assert record.array.tolist() == [1, 2]


def test_a_large_number_in_the_memo_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_record(with_pickle(b"\x80\x02}r\xff\xff\xff\x07."), {}) == {}  # 2^27 - 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_nothing_that_was_refused_changes_what_comes_after() -> None:
    for state in (b"}X\x04\0\0\0evilK\x01sb.", b"N}X\x04\0\0\0evilK\x01s\x86b."):
        with pytest.raises(LatticeError):
            read_record(with_pickle(b"ccollections\nOrderedDict\n" + state), {})
    assert not hasattr(OrderedDict, "evil")


def test_a_random_change_of_the_pickle_never_does_more_than_fail() -> None:
    content = saved({"a": torch.arange(6).reshape(2, 3), "id": "x"})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        program = archive.read("archive/data.pkl")
    generator = np.random.default_rng(0)
    for _ in range(2000):
        spoiled = bytearray(program)
        for place in generator.integers(len(spoiled), size=generator.integers(1, 4)):
            spoiled[place] = generator.integers(256)
        try:
            read_record(changed(content, {"data.pkl": bytes(spoiled)}), {})
        except LatticeError:
            continue


def test_a_class_is_read_under_the_name_that_is_allowed_alone() -> None:
    class Kept:
        def __setstate__(self, state: object) -> None:
            self.state = state

        def __getstate__(self) -> object:
            return ("kept",)

    content = write_record([Kept()], {Kept: ("library.module", "Kept")})
    record = read_record(content, {("library.module", "Kept"): Kept})
    assert isinstance(record, list)
    assert record[0].state == ("kept",)
    with pytest.raises(LatticeError, match=r"it names library\.module\.Kept"):
        read_record(content, {})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_record([Kept()], {})
