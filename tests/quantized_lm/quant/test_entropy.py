from __future__ import annotations

import base64
import contextlib
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantized_lm.errors import FormatError
from quantized_lm.quant import entropy
from quantized_lm.quant.entropy import CHECKSUM_BYTES, TensorForm, decode, encode, form_of
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor


def random_tensor(
    seed: int, format_name: str, shape: tuple[int, int], *, spread: float = 1.0
) -> QuantizedTensor:
    """Codes, scales and levels of every kind: skewed and even, tied and free.

    Args:
        spread: of the probabilities; near 0 one code has nearly all.
    """
    rng = np.random.default_rng(seed)
    num_levels = int(rng.integers(1, FORMATS[format_name].num_levels + 1))
    group_size = int(rng.integers(1, shape[1] + 1))
    codes = rng.choice(num_levels, shape, p=rng.dirichlet(np.full(num_levels, spread)))
    scale = rng.lognormal(-3, 1, (shape[0], -(-shape[1] // group_size))).astype(np.float16)
    if seed % 3 == 0:
        scale[:] = (6e-8, 0.125, 1.0, 65504.0)[seed % 4]
    return QuantizedTensor.from_codes(
        codes.astype(np.uint8),
        scale,
        rng.integers(-128, 128, num_levels).astype(np.int8),
        format=format_name,
        group_size=group_size,
    )


# What the first version made of `pinned_tensor`.
PINNED = (
    "0eW4igIB/v8AAQLBEVkLWQseDAAAAAC+P0IAY2BkIBECANMxMDIxNTO3sNChHQMAY2CAgAYG2jEAi262A+kVghGslMnM"
    "+Z8P0EfUiTwObqXUNU0h4FrQDG6a0DGUifzHlE7NMiwh0VZsKNSCPFgutFTZDAngaTyVYNTMLizA008N/usBFAdub9CE"
    "Lt2UX3paLNzT+u2zFBfNaZCIrrpUnvq5YMKQKiy+k97fuPyuIJJQEGwBlLn8iJTlDEeQxKCTkHf6qtBuugwgdDyE/LBg"
    "EtElbP7TaK6eEHr679/PkKA6EKC8fCuUpLzdVAVNPKzVk6U8VCD9TAGUufxilExNDG6q0Iq6IWAh4FrQDG6q0G664h/C"
    "fK3guhA="
)
tensors = st.builds(
    random_tensor,
    st.integers(0, 10_000),
    st.sampled_from(sorted(FORMATS)),
    st.tuples(st.integers(1, 30), st.integers(1, 60)),
    spread=st.sampled_from([1e-3, 0.3, 10.0]),
)


def gaussian(
    shape: tuple[int, int], format_name: str, num_levels: int, step: float
) -> QuantizedTensor:
    """A Gaussian matrix rounded to steps, its scales all one."""
    half = num_levels // 2
    weight = np.random.default_rng(5).standard_normal(shape)
    codes = np.clip(np.rint(weight / step), -half, half) + half
    levels = np.arange(-half, half + 1, dtype=np.int8)
    scale = np.ones((shape[0], 1), np.float16)
    return QuantizedTensor.from_codes(codes.astype(np.uint8), scale, levels, format=format_name)


def pinned_tensor() -> QuantizedTensor:
    """Half of the rows nearly constant, so that there are clusters."""
    row, column = np.indices((50, 30))
    codes = np.where(row % 2 == 0, (row * row + 7 * column) % 11 % 5, 2 + (row * column == 9))
    scale = ((np.arange(100).reshape(50, 2) % 9 + 1) / 16).astype(np.float16)
    levels = np.array([-2, -1, 0, 1, 2], np.int8)
    return QuantizedTensor.from_codes(
        codes.astype(np.uint8), scale, levels, format="4bit", group_size=16
    )


def entropy_bytes(tensor: QuantizedTensor) -> float:
    share = np.bincount(tensor.codes().reshape(-1)) / tensor.codes().size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum()) * tensor.codes().size / 8


def assert_same(first: QuantizedTensor, second: QuantizedTensor) -> None:
    assert form_of(first) == form_of(second)
    np.testing.assert_array_equal(first.words, second.words)
    np.testing.assert_array_equal(first.scale.view(np.uint16), second.scale.view(np.uint16))
    np.testing.assert_array_equal(first.levels, second.levels)


def sealed(body: bytes) -> bytes:
    """A body with a checksum that fits, so that what lies behind the checksum is reached."""
    return zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little") + body


@settings(deadline=None, max_examples=50)
@given(st.lists(tensors, max_size=3))
def test_every_bit_comes_back(some: list[QuantizedTensor]) -> None:
    named = {f"t{number}": tensor for number, tensor in enumerate(some)}
    coded = encode(named)
    back = decode(coded.data, {name: form_of(tensor) for name, tensor in named.items()})
    assert list(back) == list(named)
    for name, tensor in named.items():
        assert_same(back[name], tensor)
    assert sum(coded.size_bytes.values()) + CHECKSUM_BYTES == len(coded.data)


@settings(deadline=None, max_examples=50)
@given(tensors, tensors)
def test_a_tensor_takes_the_same_bytes_beside_any_other(
    first: QuantizedTensor, second: QuantizedTensor
) -> None:
    together = encode({"first": first, "second": second}).size_bytes
    assert together["first"] == encode({"x": first}).size_bytes["x"]
    assert together["second"] == encode({"x": second}).size_bytes["x"]


def test_the_same_tensor_gives_the_same_bytes() -> None:
    tensor = gaussian((64, 96), "4bit", 5, 1.4)
    assert encode({"x": tensor}).data == encode({"x": tensor}).data


@pytest.mark.parametrize(
    ("format_name", "num_levels", "step"),
    [("ternary", 3, 1.6), ("4bit", 5, 1.45), ("4bit", 5, 0.9), ("4bit", 15, 0.4)],
)
def test_small_matrices_are_within_half_a_percent_of_their_entropy(
    format_name: str, num_levels: int, step: float
) -> None:
    tensor = gaussian((256, 256), format_name, num_levels, step)
    size = len(encode({"x": tensor}).data)
    assert size < 1.005 * entropy_bytes(tensor)
    assert size < 0.9 * tensor.size_bytes


def test_scales_that_are_equal_or_coarse_cost_little() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 3, (512, 40)).astype(np.uint8)
    levels = np.array([-1, 0, 1], np.int8)
    size = {}
    free = rng.lognormal(-3, 0.2, (512, 1)).astype(np.float16)
    coarse = (free.view(np.uint16) & 0xFFC0).view(np.float16)  # four bits of mantissa
    for name, scale in {"free": free, "coarse": coarse, "equal": free[:1].repeat(512, 0)}.items():
        tensor = QuantizedTensor.from_codes(codes, scale, levels, format="ternary")
        size[name] = len(encode({"x": tensor}).data)
    assert size["free"] - size["coarse"] > 512 * 5 / 8
    assert size["coarse"] - size["equal"] > 512 * 3 / 8


def test_columns_of_unlike_variance_are_coded_below_the_common_entropy() -> None:
    rng = np.random.default_rng(3)
    deviation = rng.lognormal(0, 0.5, 384)
    codes = np.clip(np.rint(rng.standard_normal((1000, 384)) * deviation / 1.4), -2, 2) + 2
    tensor = QuantizedTensor.from_codes(
        codes.astype(np.uint8),
        np.ones((1000, 1), np.float16),
        np.arange(-2, 3, dtype=np.int8),
        format="4bit",
    )
    coded = encode({"x": tensor})
    assert len(coded.data) < 0.93 * entropy_bytes(tensor)
    assert_same(decode(coded.data, {"x": form_of(tensor)})["x"], tensor)


def test_bytes_of_the_first_version_are_still_read() -> None:
    tensor = pinned_tensor()
    assert_same(decode(base64.b64decode(PINNED), {"x": form_of(tensor)})["x"], tensor)


def test_digits_in_another_order_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = gaussian((16, 16), "4bit", 5, 1.4)
    data = encode({"x": tensor}).data
    right = entropy._digits
    monkeypatch.setattr(entropy, "_digits", lambda form: right(form)[:, ::-1])
    with pytest.raises(AssertionError):
        assert_same(decode(data, {"x": form_of(tensor)})["x"], tensor)


@settings(deadline=None, max_examples=50)
@given(tensors, st.data())
def test_damage_is_refused_before_anything_is_decoded(
    tensor: QuantizedTensor, data: st.DataObject
) -> None:
    whole = encode({"x": tensor}).data
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), whole[:position], whole + b"\0"):
        with pytest.raises(FormatError, match="do not match their checksum"):
            decode(damaged, {"x": form_of(tensor)})


@settings(deadline=None, max_examples=50)
@given(tensors, st.data())
def test_damage_behind_a_checksum_that_fits_gives_a_tensor_or_a_format_error(
    tensor: QuantizedTensor, data: st.DataObject
) -> None:
    body = bytearray(encode({"x": tensor}).data[CHECKSUM_BYTES:])
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    keep = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    try:
        back = decode(sealed(bytes(body[:keep])), {"x": form_of(tensor)})
    except FormatError:
        return
    assert form_of(back["x"]) == form_of(tensor)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=400), tensors)
def test_any_bytes_give_a_tensor_or_a_format_error(body: bytes, tensor: QuantizedTensor) -> None:
    with contextlib.suppress(FormatError):
        decode(sealed(body), {"x": form_of(tensor)})


@settings(deadline=None, max_examples=50)
@given(tensors, tensors)
def test_bytes_of_another_tensor_give_a_tensor_or_a_format_error(
    tensor: QuantizedTensor, other: QuantizedTensor
) -> None:
    with contextlib.suppress(FormatError):
        decode(encode({"x": tensor}).data, {"x": form_of(other)})


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bytes([0, 1]), "'x': there are 0 by 1 clusters; need 1 to 4 by 6"),
        (bytes([1, 9]), "'x': there are 1 by 9 clusters; need 1 to 4 by 6"),
        (bytes([5, 1]), "'x': there are 5 by 1 clusters; need 1 to 4 by 6"),
        (bytes([1, 1, 0, 1, 2]) + b"\xff\xff\xff\xff", "add up to 131070; need at most 16384"),
        (bytes([1, 1, 0, 1]), "data ends at byte 4; need 5"),
        (bytes([1, 1, 0, 1, 2]) + bytes(4) + b"\xff\xff", "a plane of 4 bytes is damaged"),
        (bytes([1, 1, 0, 1, 2]) + bytes(4) + b"\x03\x00", "a plane has 0 bytes or more; need 4"),
    ],
)
def test_heads_that_cannot_be_are_refused_with_numbers(head: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode(sealed(head), {"x": TensorForm("ternary", (4, 6), 6, 3)})


def test_a_label_without_a_cluster_is_refused() -> None:
    labels = np.array([0, 1, 2, 0], np.uint8)
    head = bytes([2, 1, 0, 1, 2]) + bytes(8) + entropy._deflate(labels)
    with pytest.raises(FormatError, match="cluster 2 is out of range; there are 2"):
        decode(sealed(head), {"x": TensorForm("ternary", (4, 6), 6, 3)})


@pytest.mark.parametrize(
    ("shape", "group_size", "num_levels", "message"),
    [
        ((0, 4), 1, 3, "shape is"),
        ((4, -4), 1, 3, "shape is"),
        ((4, 4), 5, 3, "group_size 5"),
        ((4, 4), -1, 3, "group_size -1"),
        ((4, 4), 4, 4, "4 levels; ternary needs 1 to 3"),
        ((4, 4), 4, 0, "0 levels"),
    ],
)
def test_a_form_that_no_tensor_has_is_refused(
    shape: tuple[int, int], group_size: int, num_levels: int, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        TensorForm("ternary", shape, group_size, num_levels)
