"""Packed tensors at their entropy: to bytes and back, all of them at once, to the last bit.

Codes go through rANS with one static table for each pair of a row and a column cluster. A symbol
is as many codes as fit a byte, a number in base L whose lowest digit comes first (three codes of 5
levels); its probability is the product of theirs, so that a table is L - 1 numbers.

    checksum   uint32, CRC-32 of all that follows; every number is little-endian
    of each tensor in turn:
      R, C     uint8, clusters of rows and of columns
      levels   (L,) int8
      tables   (R, C, L - 1) uint16, frequency of each level but the last, out of 2**14
      planes   raw deflate streams of bytes: row labels (N,) if R > 1, column labels (K,) if
               C > 1, high bytes and low bytes of the float16 scales (N * G,) each
    symbols    quant/rans.py; one run for each pair of clusters, in order; in it the codes of those
               rows and columns, row by row, filled up to a whole symbol

What a tensor is (format, shape, group size, number of levels) is said elsewhere, and bounds what
damaged bytes can make of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant import rans
from quantized_lm.quant.clusters import MAX_CLUSTERS, Clusters, find_clusters
from quantized_lm.quant.formats import get_format
from quantized_lm.quant.tensor import QuantizedTensor

CHECKSUM_BYTES = 4
_MAX_DIGITS = 8
_RAW_DEFLATE = -15


@dataclass(frozen=True)
class TensorForm:
    """What a tensor is, without its numbers; fields as in QuantizedTensor.

    Raises:
        FormatError: there is no such tensor.
    """

    format: str
    shape: tuple[int, int]
    group_size: int
    num_levels: int

    def __post_init__(self) -> None:
        """Refuse what would only fail once memory is taken."""
        most = get_format(self.format).num_levels
        if min(self.shape) < 1 or not 1 <= self.group_size <= self.shape[1]:
            raise FormatError(
                f"shape is {self.shape}, group_size {self.group_size}; need at least one row and "
                "column, and groups of 1 to all columns"
            )
        if not 1 <= self.num_levels <= most:
            raise FormatError(
                f"there are {self.num_levels} levels; {self.format} needs 1 to {most}"
            )

    @property
    def num_scales(self) -> int:
        """Scales in all rows."""
        return self.shape[0] * -(-self.shape[1] // self.group_size)

    @property
    def digits(self) -> int:
        """Codes in one symbol."""
        if self.num_levels == 1:
            return _MAX_DIGITS
        return max(n for n in range(1, _MAX_DIGITS + 1) if self.num_levels**n <= rans.MAX_SYMBOLS)


@dataclass(frozen=True)
class Coded:
    """What `encode` made.

    Attributes:
        data: the bytes.
        size_bytes: each tensor's part of them; with CHECKSUM_BYTES they are all. It does not
            depend on the other tensors.
    """

    data: bytes
    size_bytes: dict[str, int]


def encode(tensors: Mapping[str, QuantizedTensor]) -> Coded:
    """Code all tensors in their order."""
    heads: dict[str, bytes] = {}
    runs: list[rans.Run] = []
    owners: list[str] = []
    for name, tensor in tensors.items():
        codes, form = tensor.codes(), form_of(tensor)
        clusters = find_clusters(codes, form.num_levels)
        parts, own_runs = _code_runs(codes, form, clusters)
        planes = [clusters.rows] if clusters.num_rows > 1 else []
        planes += [clusters.columns] if clusters.num_columns > 1 else []
        scale = tensor.scale.astype("<f2").view(np.uint8).reshape(-1, 2)
        planes += [scale[:, 1], scale[:, 0]]
        heads[name] = b"".join(
            [
                bytes([clusters.num_rows, clusters.num_columns]),
                tensor.levels.tobytes(),
                parts,
                *map(_deflate, planes),
            ]
        )
        runs += own_runs
        owners += [name] * len(own_runs)
    coded = rans.encode(runs)
    size_bytes = {name: len(head) for name, head in heads.items()}
    for name, size in zip(owners, coded.size_bytes.tolist(), strict=True):
        size_bytes[name] += size
    body = b"".join(heads.values()) + coded.data
    return Coded(zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little") + body, size_bytes)


def decode(data: bytes, forms: Mapping[str, TensorForm]) -> dict[str, QuantizedTensor]:
    """Undo `encode`.

    Args:
        data: all of what it made.
        forms: of each tensor, in the order of encoding. Memory and time are bounded by these.

    Raises:
        FormatError: the data is damaged, or does not fit the forms.
    """
    checksum = int.from_bytes(data[:CHECKSUM_BYTES], "little")
    body = memoryview(data)[CHECKSUM_BYTES:]
    if len(data) < CHECKSUM_BYTES or zlib.crc32(body) != checksum:
        raise FormatError(
            f"coded tensors do not match their checksum {checksum:#010x}; {len(data)} bytes given"
        )
    reader = _Reader(body)
    heads: dict[str, _Head] = {}
    for name, form in forms.items():
        with naming(name):
            heads[name] = _read_head(reader, form)
    symbols = rans.decode(
        reader.rest(),
        [length for name, head in heads.items() for length in head.lengths(forms[name])],
        [table for head in heads.values() for table in head.tables],
    )
    return _assemble(forms, heads, symbols)


def form_of(tensor: QuantizedTensor) -> TensorForm:
    """What `decode` has to be told of a tensor."""
    return TensorForm(tensor.format, tensor.shape, tensor.group_size, len(tensor.levels))


@contextmanager
def naming(tensor: str) -> Iterator[None]:
    """Put the tensor's name before a FormatError from within."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"tensor {tensor!r}: {error}") from None


@dataclass(frozen=True, eq=False)
class _Head:
    """What stands before the symbols of one tensor; tables are those of `rans.Run`."""

    clusters: Clusters
    levels: NDArray[np.int8]
    tables: list[NDArray[np.int64]]
    scale: NDArray[np.float16]

    def lengths(self, form: TensorForm) -> list[int]:
        """Symbols of each run."""
        rows = np.bincount(self.clusters.rows, minlength=self.clusters.num_rows)
        columns = np.bincount(self.clusters.columns, minlength=self.clusters.num_columns)
        codes = np.outer(rows, columns).reshape(-1)
        return [int(-(-count // form.digits)) for count in codes]


class _Reader:
    """Bytes taken from the front, never more than there are."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> memoryview:
        """The next bytes."""
        end = self._at + size
        if end > len(self._data):
            raise FormatError(f"data ends at byte {len(self._data)}; need {end}")
        part, self._at = self._data[self._at : end], end
        return part

    def inflate(self, size: int) -> NDArray[np.uint8]:
        """The next plane: (size,) uint8."""
        # Deflate stores what it cannot compress with five bytes for each 16 KiB or more.
        window = self._data[self._at : self._at + size + size // 1000 + 64]
        stream = zlib.decompressobj(_RAW_DEFLATE)
        try:
            plane = stream.decompress(window, size + 1)
        except zlib.error as error:
            raise FormatError(f"a plane of {size} bytes is damaged ({error})") from None
        if len(plane) != size or not stream.eof:
            raise FormatError(f"a plane has {len(plane)} bytes or more; need {size}")
        self._at += len(window) - len(stream.unused_data)
        return np.frombuffer(plane, np.uint8)

    def rest(self) -> memoryview:
        """Whatever has not been taken."""
        return self._data[self._at :]


def _read_head(reader: _Reader, form: TensorForm) -> _Head:
    num_rows, num_columns = reader.take(2)
    most = [min(length, MAX_CLUSTERS) for length in form.shape]  # each has a row, or a column
    if not (1 <= num_rows <= most[0] and 1 <= num_columns <= most[1]):
        raise FormatError(
            f"there are {num_rows} by {num_columns} clusters; need 1 to {most[0]} by {most[1]}"
        )
    levels = np.frombuffer(reader.take(form.num_levels), np.int8)
    shape = (num_rows * num_columns, form.num_levels - 1)
    stored = np.frombuffer(reader.take(2 * math.prod(shape)), "<u2").reshape(shape)
    last = rans.TABLE_TOTAL - stored.sum(1, dtype=np.int64)
    if (last < 0).any():
        raise FormatError(
            f"frequencies add up to {rans.TABLE_TOTAL - int(last.min())}; need at most "
            f"{rans.TABLE_TOTAL}"
        )
    frequencies = np.column_stack([stored, last]).astype(np.int64)
    row_labels = _read_labels(reader, form.shape[0], num_rows)
    column_labels = _read_labels(reader, form.shape[1], num_columns)
    scale = np.empty((form.num_scales, 2), np.uint8)
    scale[:, 1] = reader.inflate(form.num_scales)
    scale[:, 0] = reader.inflate(form.num_scales)
    return _Head(
        Clusters(row_labels, column_labels, num_rows, num_columns),
        levels.copy(),
        [_symbol_table(row, form.digits) for row in frequencies],
        scale.view("<f2").astype(np.float16, copy=False).reshape(form.shape[0], -1),
    )


def _read_labels(reader: _Reader, length: int, count: int) -> NDArray[np.uint8]:
    if count == 1:
        return np.zeros(length, np.uint8)
    labels = reader.inflate(length)
    if int(labels.max()) >= count:
        raise FormatError(f"cluster {int(labels.max())} is out of range; there are {count}")
    return labels


def _assemble(
    forms: Mapping[str, TensorForm],
    heads: Mapping[str, _Head],
    symbols: list[NDArray[np.uint8]],
) -> dict[str, QuantizedTensor]:
    """Symbols to codes and codes to their places."""
    tensors = {}
    runs = iter(symbols)
    for name, form in forms.items():
        head = heads[name]
        codes = np.empty(form.shape, np.uint8)
        for rows, columns in _blocks(head.clusters):
            digits = _digits(form)[next(runs)].reshape(-1)
            codes[np.ix_(rows, columns)] = digits[: len(rows) * len(columns)].reshape(
                len(rows), len(columns)
            )
        with naming(name):
            tensors[name] = QuantizedTensor.from_codes(
                codes, head.scale, head.levels, format=form.format, group_size=form.group_size
            )
    return tensors


def _code_runs(
    codes: NDArray[np.uint8], form: TensorForm, clusters: Clusters
) -> tuple[bytes, list[rans.Run]]:
    """Tables as they are stored, and the runs they are for."""
    stored, runs = [], []
    place_values = form.num_levels ** np.arange(form.digits)
    for rows, columns in _blocks(clusters):
        block = codes[np.ix_(rows, columns)].reshape(-1)
        counts = np.bincount(block, minlength=form.num_levels)
        frequencies = _frequencies(counts)
        padded = np.full(-(-len(block) // form.digits) * form.digits, counts.argmax(), np.uint8)
        padded[: len(block)] = block
        symbols = padded.reshape(-1, form.digits) @ place_values
        stored.append(frequencies[:-1].astype("<u2").tobytes())
        runs.append(rans.Run(symbols.astype(np.uint8), _symbol_table(frequencies, form.digits)))
    return b"".join(stored), runs


def _blocks(clusters: Clusters) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Row and column numbers of each pair of clusters."""
    columns = [np.flatnonzero(clusters.columns == label) for label in range(clusters.num_columns)]
    return [
        (np.flatnonzero(clusters.rows == label), some)
        for label in range(clusters.num_rows)
        for some in columns
    ]


def _frequencies(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts (L,) scaled to a sum of TABLE_TOTAL; what occurs keeps at least 1."""
    return _rounded(np.multiply(counts, rans.TABLE_TOTAL / counts.sum(), dtype=np.float64))


def _symbol_table(frequencies: NDArray[np.int64], digits: int) -> NDArray[np.int64]:
    """Products of the digits' probabilities as frequencies: (L ** digits,) int64."""
    # Only products and roundings of float64, each exact by IEEE 754: the same on every machine.
    probability = np.ones(1)
    for _ in range(digits):
        probability = (frequencies / rans.TABLE_TOTAL)[:, None] * probability
        probability = probability.reshape(-1)
    return _rounded(probability * rans.TABLE_TOTAL)


def _rounded(exact: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers that add up to TABLE_TOTAL, at least 1 where exact > 0."""
    table = np.where(exact > 0, np.maximum(np.rint(exact), 1), 0).astype(np.int64)
    # The excess is spread over the most probable, one each, where it costs least.
    order = np.argsort(-table, kind="stable")
    while excess := int(table.sum()) - rans.TABLE_TOTAL:
        can_change = order[table[order] > 1]
        some = can_change[: min(abs(excess), -(-len(can_change) // 4))]
        table[some] -= np.sign(excess)
    return table


def _digits(form: TensorForm) -> NDArray[np.uint8]:
    """Codes of every symbol: (256, digits) uint8."""
    place_values = form.num_levels ** np.arange(form.digits)
    symbols = np.arange(rans.MAX_SYMBOLS)[:, None]
    return (symbols // place_values % form.num_levels).astype(np.uint8)


def _deflate(plane: NDArray[np.uint8]) -> bytes:
    """The smaller of Huffman codes alone, which suit noise, and with repeats, which suit ties."""
    coded = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        stream = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE, 9, strategy)
        coded.append(stream.compress(plane.tobytes()) + stream.flush())
    return min(coded, key=len)
