"""Symbols to 16-bit words and back with static tables (rANS). Knows nothing of tensors.

Asymmetric numeral systems: J. Duda, arXiv 1311.2540; many coders over one stream of words:
F. Giesen, arXiv 1402.3392. A state x in [2**16, 2**32) codes symbol s of frequency f[s] out of
2**14, c[s] the frequencies before it, as

    x -> (x // f[s] << 14) + x % f[s] + c[s],  x first giving up its low word while it is too large

A run of symbols is split over lanes of LANE_SYMBOLS or fewer. All lanes of all runs go in step and
share one stream, so that numpy decodes a model in LANE_SYMBOLS vector operations. The price is
three bytes per lane: a lane's first state is 2**16, its last is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import FormatError

TABLE_BITS = 14
TABLE_TOTAL = 1 << TABLE_BITS
MAX_SYMBOLS = 256
TABLE_BYTES = TABLE_TOTAL + 2 * 8 * MAX_SYMBOLS  # of one while it is read: slots, frequencies, sums
LANE_SYMBOLS = 4096
STATE_BYTES = 4
_WORD_BITS = 16
_LEAST_STATE = 1 << _WORD_BITS


@dataclass(frozen=True, eq=False)
class Run:
    """Symbols that share a table.

    Attributes:
        symbols: (n,) uint8, any n.
        table: (S,) int64 frequencies, S <= MAX_SYMBOLS, their sum TABLE_TOTAL; more than 0 for
            each symbol that occurs.
    """

    symbols: NDArray[np.uint8]
    table: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CodedRuns:
    """What `encode` made.

    Attributes:
        data: the last state of each lane, uint32, then the stream, uint16, both little-endian.
        size_bytes: (R,) int64, each run's part of it: runs add up, whoever their neighbors are.
    """

    data: bytes
    size_bytes: NDArray[np.int64]


def num_lanes(num_symbols: int) -> int:
    """Lanes of a run."""
    return -(-num_symbols // LANE_SYMBOLS)


class _Lanes:
    """Which lanes code which symbols: runs by falling number of steps, each with its lanes.

    Attributes:
        order: (R,) run numbers, longest steps first.
        first, count, steps: (R,) of each run: its first lane, its lanes and their symbols.
        run: (total,) the run of each lane.
        active: (T,) how many lanes have a symbol at step t: always the first ones.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.count = np.array([num_lanes(length) for length in lengths], np.int64)
        self.steps = -(-np.array(lengths, np.int64) // np.maximum(self.count, 1))
        self.order = np.argsort(-self.steps, kind="stable")
        ends = np.cumsum(self.count[self.order])
        self.first = np.zeros(len(lengths), np.int64)
        self.first[self.order] = ends - self.count[self.order]
        self.total = int(self.count.sum())
        self.run = np.repeat(self.order, self.count[self.order])
        times = np.arange(int(self.steps.max(initial=0)))
        self.active = np.searchsorted(-self.steps[self.run], -times, side="left")

    def phases(self) -> Iterator[tuple[int, int, int]]:
        """Steps between which no lane ends: first, last + 1, and how many lanes are active."""
        bounds = np.flatnonzero(np.diff(self.active, prepend=0, append=0)).tolist()
        for start, stop in pairwise(bounds):
            yield start, stop, int(self.active[start])

    def columns(self, run: int) -> slice:
        """The lanes of a run."""
        return slice(int(self.first[run]), int(self.first[run] + self.count[run]))


def encode(runs: Sequence[Run]) -> CodedRuns:
    """Code every run; the same runs always give the same bytes."""
    lanes = _Lanes([len(run.symbols) for run in runs])
    symbols = np.zeros((len(lanes.active), lanes.total), np.uint8)
    for number, run in enumerate(runs):
        count, steps = int(lanes.count[number]), int(lanes.steps[number])
        padded = np.full(count * steps, run.table.argmax(), np.uint8)
        padded[: len(run.symbols)] = run.symbols
        symbols[:steps, lanes.columns(number)] = padded.reshape(count, steps).T
    frequency, before = _tables([run.table for run in runs])
    state = np.full(lanes.total, _LEAST_STATE, np.int64)
    words_of_lane = np.zeros(lanes.total, np.int64)
    stream: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)]
    # Backwards, so that the decoder goes forwards: the last symbol is coded first.
    for time in range(len(lanes.active) - 1, -1, -1):
        active = lanes.active[time]
        entry = lanes.run[:active] * MAX_SYMBOLS + symbols[time, :active]
        share, x = frequency[entry], state[:active]
        full = np.flatnonzero(x >= share << (2 * _WORD_BITS - TABLE_BITS))
        stream.append((x[full] & 0xFFFF).astype(np.uint16))
        words_of_lane[full] += 1
        x[full] >>= _WORD_BITS
        quotient, remainder = np.divmod(x, share)
        state[:active] = (quotient << TABLE_BITS) + remainder + before[entry]
    words = np.concatenate(stream[::-1]).astype("<u2")
    size = np.bincount(lanes.run, STATE_BYTES + 2 * words_of_lane, len(runs))
    return CodedRuns(state.astype("<u4").tobytes() + words.tobytes(), size.astype(np.int64))


def decode(
    data: bytes | memoryview, lengths: Sequence[int], tables: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.uint8]]:
    """Undo `encode`.

    Args:
        data: all of what it made.
        lengths: symbols in each run.
        tables: of each run, as in Run.

    Returns:
        The symbols of each run.

    Raises:
        FormatError: the data is too short, too long, or does not come out even.
    """
    lanes = _Lanes(lengths)
    states_end = STATE_BYTES * lanes.total
    if len(data) < states_end or (len(data) - states_end) % 2:
        raise FormatError(
            f"coded symbols have {len(data)} bytes; need {states_end} of states and whole words"
        )
    state = np.frombuffer(data[:states_end], "<u4").astype(np.int64)
    words = np.frombuffer(data[states_end:], "<u2").astype(np.int64)
    if state.size and int(state.min()) < _LEAST_STATE:
        raise FormatError(f"coder state is {int(state.min())}; need at least {_LEAST_STATE}")
    symbols, used = _decode_lanes(lanes, tables, state, words)
    if used != len(words) or (state != _LEAST_STATE).any():
        raise FormatError(
            f"coded symbols do not come out even: {used} of {len(words)} words used, "
            f"{int((state != _LEAST_STATE).sum())} of {lanes.total} lanes end in a wrong state"
        )
    return [
        symbols[: lanes.steps[number], lanes.columns(number)].T.reshape(-1)[:length]
        for number, length in enumerate(lengths)
    ]


def _decode_lanes(
    lanes: _Lanes,
    tables: Sequence[NDArray[np.int64]],
    state: NDArray[np.int64],
    words: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], int]:
    """Step all lanes, states in place; the symbols (T, total) and how many words that took."""
    frequency, before = _tables(tables)
    symbol_of_slot = np.concatenate(
        [np.repeat(np.arange(len(table), dtype=np.uint8), table) for table in tables]
        or [np.zeros(0, np.uint8)]
    )
    symbols = np.zeros((len(lanes.active), lanes.total), np.uint8)
    used = 0
    for start, stop, active in lanes.phases():
        x = state[:active]
        first_slot = lanes.run[:active] << TABLE_BITS
        first_entry = lanes.run[:active] * MAX_SYMBOLS
        for time in range(start, stop):
            slot = x & (TABLE_TOTAL - 1)
            symbol = symbol_of_slot[first_slot + slot]
            entry = first_entry + symbol
            symbols[time, :active] = symbol
            x = (x >> TABLE_BITS) * frequency[entry] + slot - before[entry]
            (hungry,) = (x < _LEAST_STATE).nonzero()
            if hungry.size:
                end = used + hungry.size
                if end > len(words):
                    raise FormatError(f"coded symbols end after {len(words)} words; need more")
                x[hungry] = x[hungry] << _WORD_BITS | words[used:end]
                used = end
        state[:active] = x
    return symbols, used


def _tables(tables: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All tables in one, MAX_SYMBOLS entries each: frequencies, and the sums before them."""
    frequency = np.zeros((len(tables), MAX_SYMBOLS), np.int64)
    for number, table in enumerate(tables):
        frequency[number, : len(table)] = table
    return frequency.reshape(-1), (frequency.cumsum(1) - frequency).reshape(-1)
