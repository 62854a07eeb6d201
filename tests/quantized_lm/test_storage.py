from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.storage import (
    AUTO,
    CODINGS,
    Stored,
    float_bytes,
    restore,
    store,
    tensor_bytes,
    weights_bytes,
)
from quantized_lm.tensor_entry import TensorEntry

RNG = np.random.default_rng(17)


def matrix(
    shape: tuple[int, int], format_name: str, num_levels: int, spread: float
) -> QuantizedTensor:
    """Random codes; the smaller the spread, the less they say."""
    share = RNG.dirichlet(np.full(num_levels, spread))
    return QuantizedTensor.from_codes(
        RNG.choice(num_levels, shape, p=share).astype(np.uint8),
        RNG.lognormal(-3, 3, (shape[0], 1)).astype(np.float16),
        np.arange(num_levels, dtype=np.int8),
        format=format_name,
    )


PACKED = {
    "embedding.weight": matrix((200, 96), "4bit", 5, 1.0),
    "layers.1.weight": matrix((96, 96), "ternary", 3, 1e4),
    # A table of 256 frequencies is more than so few codes save.
    "layers.0.weight": matrix((1, 2000), "8bit", 256, 1e4),
}
PLAIN = {
    "gain": np.linspace(0, 1, 96, dtype=np.float32),
    "bias": np.arange(6, dtype=np.float32).reshape(2, 3),
}


def assert_same(
    first: Mapping[str, QuantizedTensor], second: Mapping[str, QuantizedTensor]
) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        for part in dataclasses.fields(tensor):
            np.testing.assert_array_equal(
                getattr(tensor, part.name), getattr(second[name], part.name)
            )


@pytest.mark.parametrize("coding", [*CODINGS, AUTO])
def test_a_stored_model_comes_back(coding: str) -> None:
    stored = store(PACKED, PLAIN, coding)
    back = restore(stored.content, stored.entries, 2)
    assert_same(back.packed, PACKED)
    assert back.plain.keys() == PLAIN.keys()
    for name, array in PLAIN.items():
        np.testing.assert_array_equal(back.plain[name], array)


def test_the_order_of_the_entries_says_nothing() -> None:
    stored = store(PACKED, PLAIN)
    entries = dict(reversed(stored.entries.items()))
    assert_same(restore(stored.content, entries, 2).packed, PACKED)


def test_a_model_may_have_tensors_of_one_kind_alone() -> None:
    for packed, plain in ((PACKED, {}), ({}, PLAIN)):
        stored = store(packed, plain)
        back = restore(stored.content, stored.entries, 2)
        assert (back.packed.keys(), back.plain.keys()) == (packed.keys(), plain.keys())


def test_auto_takes_the_smaller_of_plain_and_coded_for_each_tensor() -> None:
    entries = store(PACKED, PLAIN).entries
    assert {name: entry.coding for name, entry in entries.items() if entry.group_size} == {
        "embedding.weight": "rans",
        "layers.0.weight": "",
        "layers.1.weight": "rans",
    }
    sizes = {coding: store(PACKED, PLAIN, coding).entries for coding in CODINGS}
    for name, tensor in PACKED.items():
        assert entries[name].size_bytes == min(row[name].size_bytes for row in sizes.values())
        assert entries[name].size_bytes == tensor_bytes(tensor)
        for coding, row in sizes.items():
            assert row[name].size_bytes == tensor_bytes(tensor, coding)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_auto_is_never_larger_than_one_coding_for_all(rows: int) -> None:
    # At one row, arrays of two kinds cost more header than the second kind saves.
    packed = {
        "a": matrix((rows, 300), "ternary", 3, 1e4),
        "b": matrix((1, 12), "8bit", 256, 1e4),
    }
    size = weights_bytes(packed, PLAIN)
    assert size <= min(weights_bytes(packed, PLAIN, coding) for coding in CODINGS)


@pytest.mark.parametrize("coding", [*CODINGS, AUTO])
def test_entries_count_all_but_header_and_checksum(coding: str) -> None:
    stored = store(PACKED, PLAIN, coding)
    assert weights_bytes(PACKED, PLAIN, coding) == len(stored.content)
    header = 8 + int.from_bytes(stored.content[:8], "little")
    checksum = 4 if any(entry.coding for entry in stored.entries.values()) else 0
    counted = sum(entry.size_bytes for entry in stored.entries.values())
    assert counted + header + checksum == len(stored.content)
    assert header < 400
    for name, entry in stored.entries.items():
        assert entry.bits_per_weight == 8 * entry.size_bytes / math.prod(entry.shape)
        if name in PACKED:
            assert entry.packed_bytes == PACKED[name].size_bytes
            assert entry.packed_bits_per_weight == PACKED[name].bits_per_weight


def test_words_of_plain_tensors_lie_in_the_file_as_they_are_used() -> None:
    content = store(PACKED, PLAIN, "").content
    words = PACKED["embedding.weight"].words.tobytes()
    position = content.index(words)
    assert position % 4 == 0


def test_float_bytes_are_those_of_the_file() -> None:
    for shapes in (
        {"embedding.weight": (50, 24), "gain": (24,), "blocks.0.mix": (2,)},
        {"x": (3,)},
        {f"layers.{layer}.weight": (layer + 1, 7) for layer in range(12)},
    ):
        arrays: dict[str, NDArray[np.float32]] = {
            name: np.zeros(shape, np.float32) for name, shape in shapes.items()
        }
        assert float_bytes(shapes) == len(safetensors.numpy.save(arrays))


def test_version_1_has_an_array_for_each_part() -> None:
    stored = store(PACKED, PLAIN, "")
    arrays = dict(PLAIN)
    for name, tensor in PACKED.items():
        for part in ("words", "scale", "levels"):
            arrays[f"{name}.{part}"] = getattr(tensor, part)
    entries = {
        name: dataclasses.replace(entry, num_levels=0) for name, entry in stored.entries.items()
    }
    back = restore(safetensors.numpy.save(arrays), entries, 1)
    assert_same(back.packed, PACKED)
    np.testing.assert_array_equal(back.plain["bias"], PLAIN["bias"])
    del arrays["layers.1.weight.scale"]
    with pytest.raises(FormatError, match=r"'layers\.1\.weight\.scale' is missing; need float16"):
        restore(safetensors.numpy.save(arrays), entries, 1)


def test_an_unknown_coding_is_refused_with_those_there_are() -> None:
    with pytest.raises(FormatError, match="no coding is named 'zip'; known are '', 'rans'"):
        store(PACKED, PLAIN, "zip")
    with pytest.raises(FormatError, match="no coding is named 'zip'"):
        tensor_bytes(PACKED["layers.0.weight"], "zip")
    stored = store(PACKED, PLAIN, "")
    with pytest.raises(FormatError, match="no coding is named 'zip'"):
        restore(stored.content, changed(stored, coding="zip"), 2)


def changed(stored: Stored, **changes: object) -> dict[str, TensorEntry]:
    """The entries with one changed."""
    name = "layers.0.weight"
    return {**stored.entries, name: dataclasses.replace(stored.entries[name], **changes)}  # type: ignore[arg-type]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (1, 2001)}, r"need"),
        ({"shape": (200_000, 2000)}, r"need"),
        ({"group_size": 1000}, r"need"),
        ({"num_levels": 0}, r"there are 0 levels"),
        ({"num_levels": 1}, r"has no level|is damaged"),
    ],
)
def test_entries_that_do_not_fit_the_file_are_refused(
    coding: str, changes: dict[str, object], message: str
) -> None:
    stored = store(PACKED, PLAIN, coding)
    with pytest.raises(FormatError, match=message):
        restore(stored.content, changed(stored, **changes), 2)


def test_floats_that_do_not_fit_are_refused() -> None:
    stored = store({}, PLAIN)
    for shape, message in (
        ((7,), "'gain': array 'float32' has 102 numbers; need 103"),
        ((5,), "has 102 numbers; need 101"),
    ):
        entries = {
            **stored.entries,
            "bias": dataclasses.replace(stored.entries["bias"], shape=shape),
        }
        with pytest.raises(FormatError, match=message):
            restore(stored.content, entries, 2)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_an_unpacked_tensor_of_no_number_is_refused_by_name(version: int, odd: float) -> None:
    plain = {**PLAIN, "gain": PLAIN["gain"].copy()}
    plain["gain"][3] = odd
    stored = store({}, plain)
    content = stored.content if version == 2 else safetensors.numpy.save(plain)
    with pytest.raises(FormatError, match="'gain' holds NaN or infinity; need finite"):
        restore(content, stored.entries, version)


def test_a_file_that_cannot_be_parsed_or_lacks_an_array_is_refused() -> None:
    stored = store(PACKED, PLAIN)
    for content in (b"", stored.content[:100], stored.content[:-1]):
        with pytest.raises(FormatError, match="cannot be parsed"):
            restore(content, stored.entries, 2)
    arrays = safetensors.numpy.load(stored.content)
    del arrays["coded"]
    with pytest.raises(FormatError, match="array 'coded' is missing; need uint8"):
        restore(safetensors.numpy.save(arrays), stored.entries, 2)
    arrays["coded"] = np.zeros(4, np.int32)
    with pytest.raises(FormatError, match="array 'coded' is int32; need uint8"):
        restore(safetensors.numpy.save(arrays), stored.entries, 2)
