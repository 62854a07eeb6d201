"""Cut token shards into packed training windows; deterministic, and resumable at any window.

A document is what one stretch of attention may see: one or more segments, each ending in the
boundary symbol, the first preceded by it. Lines are merged into longer segments, and segments into
documents, with given probabilities, so that training shows the model what rescoring will: mostly
single utterances without context. Documents never share attention, though several fill a window.

Where the lines are one running text, a document is as many of them as fit a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantized_lm.tokenizer import BOUNDARY_ID

IGNORED = -100  # target of a padding position, as torch's cross entropy skips it
_POOL = 64  # documents to choose the next best fit from


@dataclass(frozen=True)
class Windows:
    """A batch of packed windows.

    Attributes:
        inputs: (B, T) int64 tokens. targets: (B, T) int64 next tokens or IGNORED.
        document: (B, T) int32 number of the document a position belongs to; -1 is padding.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    document: NDArray[np.int32]

    @property
    def num_tokens(self) -> int:
        """Targets that count."""
        return int((self.targets != IGNORED).sum())


@dataclass(frozen=True)
class Grouping:
    """How lines become documents: the fields of `CorpusRecipe` of the same names."""

    merge: float = 0.0
    context: float = 0.0
    continuous: bool = False


@dataclass(frozen=True)
class PackingState:
    """Where a packer stands: enough to go on as if it had never stopped."""

    epoch: int
    cursor: int
    pool: tuple[int, ...]


class WindowPacker:
    """Endless packed windows over one shard.

    Args:
        tokens: (n,) uint16, each line ended by the boundary symbol.
        window: T, tokens per window; longer documents are cut at it.
        grouping: of running text, each epoch starts at a line drawn anew.
        seed: decides the grouping and the order, anew in each epoch.
        epochs: after so many the windows come back empty; None is endless.
    """

    def __init__(
        self,
        tokens: NDArray[np.uint16],
        *,
        window: int,
        grouping: Grouping = Grouping(),
        seed: int = 0,
        epochs: int | None = None,
    ) -> None:
        self._tokens = tokens
        self._window = window
        self._grouping = grouping
        self._seed = seed
        self._epochs = epochs
        self._line_ends = np.flatnonzero(np.asarray(tokens) == BOUNDARY_ID)
        self._start_epoch(0)
        self._cursor = 0
        self._pool: list[int] = []

    @property
    def state(self) -> PackingState:
        """A snapshot to hand to `resume`."""
        return PackingState(self._epoch, self._cursor, tuple(self._pool))

    def resume(self, state: PackingState) -> None:
        """Go on from a snapshot of a packer made with the same arguments."""
        self._start_epoch(state.epoch)
        self._cursor = state.cursor
        self._pool = list(state.pool)

    def batch(self, num_windows: int) -> Windows:
        """The next windows."""
        shape = (num_windows, self._window)
        inputs = np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        document = np.full(shape, -1, dtype=np.int32)
        for row in range(num_windows):
            filled = 0
            number = 0
            while (chosen := self._take(self._window - filled)) is not None:
                sequence = self._sequence(chosen)
                end = filled + len(sequence) - 1
                inputs[row, filled:end] = sequence[:-1]
                targets[row, filled:end] = sequence[1:]
                document[row, filled:end] = number
                filled, number = end, number + 1
        return Windows(inputs, targets, document)

    def _start_epoch(self, epoch: int) -> None:
        """Draw the epoch's grouping of lines and the order of its documents."""
        self._epoch = epoch
        rng = np.random.default_rng([self._seed, epoch])
        draw = rng.random(len(self._line_ends))
        self._merged = draw < self._grouping.merge
        if self._grouping.continuous:
            start = int(rng.integers(len(self._line_ends))) if self._epochs is None else 0
            closes = self._closes_full_windows(start)
        else:
            closes = draw >= self._grouping.merge + self._grouping.context
        closes[-1] = True
        last = np.flatnonzero(closes)
        first = np.concatenate(([0], last[:-1] + 1))
        starts = np.where(first == 0, 0, self._line_ends[np.maximum(first, 1) - 1] + 1)
        removed = np.concatenate(([0], np.cumsum(self._merged)))
        inner = removed[last] - removed[first]  # boundaries dropped between merged lines
        length = self._line_ends[last] + 1 - starts - inner
        self._first, self._last, self._starts = first, last, starts
        self._length = np.minimum(length, self._window)
        self._order = rng.permutation(len(first))

    def _closes_full_windows(self, start: int) -> NDArray[np.bool_]:
        """Lines after which the next would not fit the window; counted from line `start` on.

        The lines before `start` make documents of their own, so none runs past the text's end.
        """
        ends = self._line_ends + 1
        closes = np.zeros(len(ends), dtype=np.bool_)
        for first, stop in ((0, start), (start, len(ends))):
            line = first
            while line < stop:
                begin = ends[line - 1] if line else 0
                fitting = int(np.searchsorted(ends, begin + self._window, side="right"))
                line = min(max(fitting, line + 1), stop)
                closes[line - 1] = True
        return closes

    def _take(self, room: int) -> int | None:
        """The longest document of the pool that still fits, or None."""
        while len(self._pool) < _POOL:
            if self._cursor == len(self._order):
                if self._pool:
                    break  # finish the epoch before drawing the next
                if self._epoch + 1 == self._epochs:
                    return None
                self._start_epoch(self._epoch + 1)
                self._cursor = 0
            self._pool.append(int(self._order[self._cursor]))
            self._cursor += 1
        lengths = self._length[self._pool]
        fits = np.where(lengths <= room, lengths, 0)
        best = int(np.argmax(fits))
        return self._pool.pop(best) if fits[best] > 0 else None

    def _sequence(self, index: int) -> NDArray[np.int64]:
        """Boundary, then the document's tokens with merged lines' boundaries taken out."""
        start, last = int(self._starts[index]), int(self._last[index])
        body = np.array(self._tokens[start : self._line_ends[last] + 1], dtype=np.int64)
        lines = np.arange(self._first[index], last)
        dropped = self._line_ends[lines[self._merged[lines]]] - start
        body = np.delete(body, dropped)[: self._window]
        return np.concatenate(([BOUNDARY_ID], body))


def share_cut(tokens: NDArray[np.uint16], window: int) -> float:
    """Share of a shard's tokens that no window has, since their line begins too far before them."""
    lengths = np.diff(np.flatnonzero(np.asarray(tokens) == BOUNDARY_ID), prepend=-1)
    return float(np.maximum(lengths - window, 0).sum() / lengths.sum())


def held_out_windows(
    tokens: NDArray[np.uint16], *, window: int, batch_windows: int, continuous: bool = False
) -> Iterator[Windows]:
    """Every line of a shard once, for measuring: a document each, or of a running text together."""
    packer = WindowPacker(tokens, window=window, grouping=Grouping(continuous=continuous), epochs=1)
    while (windows := packer.batch(batch_windows)).num_tokens:
        yield windows
