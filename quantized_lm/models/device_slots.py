"""Places in a GPU's memory for what run nodes leave behind, shared by the trees that have them.

What a node leaves is never changed, so a copy of a tree names the same slots instead of copying.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

SPARE = 0  # padding writes there, and nobody reads it
ABOVE_ROOTS = 1  # what a root's parent left behind: zeros
_RESERVED = 2


class Slots:
    """Which slots are free, and how many trees have each that is not.

    Args:
        capacity: slots at first; `grow` adds more.
    """

    def __init__(self, capacity: int) -> None:
        self._users = np.zeros(0, np.int32)
        self._free = np.zeros(0, np.int32)
        # Filled by whoever drops a tree, in any thread; emptied by `take`.
        self._dropped: deque[NDArray[np.int32]] = deque()
        self.grow(capacity)

    @property
    def capacity(self) -> int:
        """Slots in all, the reserved ones included."""
        return len(self._users)

    @property
    def num_free(self) -> int:
        """Slots that nobody has."""
        self._collect()
        return len(self._free)

    def grow(self, capacity: int) -> None:
        """Have so many slots; those there are keep their numbers."""
        first = max(self.capacity, _RESERVED)
        more = np.arange(capacity - 1, first - 1, -1, dtype=np.int32)
        self._free = np.concatenate([more, self._free])
        self._users = np.concatenate([self._users, np.zeros(capacity - self.capacity, np.int32)])

    def take(self, count: int) -> NDArray[np.int32]:
        """Free slots, now with one user each: (count,) int32. There must be so many."""
        self._collect()
        assert count <= len(self._free)
        kept = len(self._free) - count
        taken, self._free = self._free[kept:][::-1], self._free[:kept]
        self._users[taken] = 1
        return taken

    def share(self, slots: NDArray[np.int32]) -> None:
        """One more user of each, none of them twice."""
        self._users[slots] += 1

    def drop(self, slots: list[NDArray[np.int32]]) -> None:
        """One user fewer of each; from any thread."""
        self._dropped.extend(slots)

    def _collect(self) -> None:
        while self._dropped:
            slots = self._dropped.popleft()
            self._users[slots] -= 1
            self._free = np.concatenate([self._free, slots[self._users[slots] == 0]])
