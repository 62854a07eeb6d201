"""Types of the native module; csrc/bindings_tokens.cpp says what each argument means."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Counts = NDArray[np.int64]

class Encoder:
    def __init__(self, most_chunks: int, most_chars: int, unknown: int, ending: int) -> None: ...
    def __len__(self) -> int: ...
    def encode(
        self, texts: tuple[str, ...], spell: Callable[[str], Sequence[Sequence[int]]]
    ) -> tuple[Ids, Counts, Counts, Counts]: ...

def merge_prefixes(stem: Sequence[int], ids: Ids, lengths: Counts) -> tuple[Ids, Ids, Ids, Ids]: ...
