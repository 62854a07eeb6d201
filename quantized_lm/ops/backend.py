"""What a backend is: the value it prepares and the three things it computes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quantized_lm.quant.tensor import QuantizedTensor

if TYPE_CHECKING:  # a model is served without it
    from torch import Tensor

# What a product does with its float32 rows first: nothing, or `quantize_activations`.
Activations = Literal["float32", "int8"]
Residency = Literal["packed", "expanded"]  # how a GPU keeps weights; a CPU's are packed


@dataclass(frozen=True)
class BackendOptions:
    """What a backend may be asked for; one that has no use for an option ignores it.

    Attributes:
        isa: instruction set; None for the best this CPU has.
        threads: that share the work, 1 to 1024.
        pins: whether each thread stays on one core.
        residency: how a GPU keeps weights, one of `device_layout.RESIDENCIES`.
    """

    isa: str | None = None
    threads: int = 1
    pins: bool = False
    residency: str = "auto"


class Backend(Protocol):
    """Arithmetic with packed weights on one kind of device. Arguments were checked by the caller.

    Attributes:
        name: key in BACKENDS.
        variant: what inside the backend does the work, e.g. the instruction set; for reports.
        activations: what products are computed from; decides what they must equal.
    """

    @property
    def name(self) -> str:
        """Key in BACKENDS."""
        ...

    @property
    def variant(self) -> str:
        """Which code path does the work, for reports."""
        ...

    @property
    def activations(self) -> Activations:
        """What products are computed from."""
        ...

    def prepare(self, tensor: QuantizedTensor) -> PackedWeight:
        """Lay a weight out as this backend's kernels read it. Done once, at load."""
        ...

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """(M, K) float32 times weight transposed: (M, N) float32."""
        ...

    def embed(self, weight: PackedWeight, tokens: Tensor) -> Tensor:
        """Dequantize rows: (T,) int64 row numbers to (T, K) float32."""
        ...

    def gather_log_prob(
        self, hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor
    ) -> Tensor:
        """Compute log softmax(hidden @ weight.T)[rows, tokens]: (C,) float32, nats."""
        ...


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight ready for one backend.

    Attributes:
        backend: the backend that prepared it and the only one that can read it.
        format: key in FORMATS, as on disk.
        shape: (N, K).
        group_size: columns that share a scale.
        words: packed codes, int32 holding the bits of uint32; layout is the backend's own, and
            whether arrays are numpy's or torch's.
        scale: scales, layout and dtype the backend's own.
        levels: level table, dtype the backend's own.
        layout: how the words are laid out, in numbers of the backend's own.
    """

    backend: Backend
    format: str
    shape: tuple[int, int]
    group_size: int
    words: Any
    scale: Any
    levels: Any
    layout: tuple[int, ...] = ()

    @property
    def parts(self) -> list[Any]:
        """The arrays, in the order in which operators take them."""
        return [self.words, self.scale, self.levels]

    @property
    def size_bytes(self) -> int:
        """Bytes this weight takes in memory."""
        return sum(part.nbytes for part in self.parts)
