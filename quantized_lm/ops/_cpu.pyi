"""Types of the native module; csrc/bindings.cpp says what each argument means."""

from collections.abc import Sequence

from torch import Tensor

PANEL: int

def instruction_sets() -> list[str]: ...
def linear(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    levels: Tensor,
    layout: Sequence[int],
    isa: str,
    y: Tensor,
) -> None: ...
def embed(
    tokens: Tensor,
    words: Tensor,
    scale: Tensor,
    levels: Tensor,
    layout: Sequence[int],
    isa: str,
    y: Tensor,
) -> None: ...
def gather_log_prob(
    hidden: Tensor,
    rows: Tensor,
    tokens: Tensor,
    words: Tensor,
    scale: Tensor,
    levels: Tensor,
    layout: Sequence[int],
    isa: str,
    y: Tensor,
) -> None: ...
