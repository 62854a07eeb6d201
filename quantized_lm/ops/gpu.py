"""The triton backend: packed weights on an NVIDIA GPU's int8 tensor cores.

Triton is imported only where this backend is made, so everything else works without it. Under
Triton's interpreter (TRITON_INTERPRET=1) the kernels run on a CPU, slowly, for tests: then the
backend can be had by its name and is never chosen by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import Activations, BackendOptions, PackedWeight, Residency
from quantized_lm.ops.checks import require_below, require_finite
from quantized_lm.ops.device_args import Codes
from quantized_lm.ops.device_layout import (
    EXPANDED_BITS,
    RESIDENCIES,
    DeviceLayout,
    DeviceWeight,
    ResidencyChoice,
    expand,
    lay_out,
)
from quantized_lm.ops.tiles import BUCKETS, INTERPRETED_BUCKETS, read_tiles
from quantized_lm.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from quantized_lm.ops.triton.launch import Kernels

# int8 tensor cores and asynchronous copies; tuned for 9.0.
LEAST_CAPABILITY = (8, 0)
LEAST_FREE_BYTES = 1 << 30
_INSTEAD = "use the CPU engine, --device cpu"
# Expanded weights of a Transformer are taken up to this part of what is free.
_EXPANDED_SHARE = 4
_ROWS_AT_ONCE = 4096


def why_unavailable() -> str | None:
    """Why no GPU can be used here, and what to do instead; None when one can."""
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed; install secondpass[gpu], or {_INSTEAD}"
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return f"this torch is a build for CPUs; install its CUDA build, or {_INSTEAD}"
    if not torch.cuda.is_available():
        return f"torch finds no CUDA device; {_INSTEAD}"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        need = ".".join(map(str, LEAST_CAPABILITY))
        got = ".".join(map(str, capability))
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {got}, {need} is needed; {_INSTEAD}"
    free, _ = torch.cuda.mem_get_info()
    if free < LEAST_FREE_BYTES:
        return (
            f"{free >> 20} MB of the GPU are free, {LEAST_FREE_BYTES >> 20} are needed; {_INSTEAD}"
        )
    return None


def is_interpreted() -> bool:
    """Whether Triton was told to run kernels on the CPU."""
    if importlib.util.find_spec("triton") is None:
        return False
    knobs = importlib.import_module("triton").knobs
    return bool(knobs.runtime.interpret)


def kernel_errors() -> tuple[type[Exception], ...]:
    """What is raised where a kernel does not compile, or wants more than the GPU has."""
    errors = importlib.import_module("triton.errors")
    return (RuntimeError, ValueError, errors.TritonError)


@dataclass(frozen=True, eq=False)
class GpuBackend:
    """Kernels of one GPU.

    Attributes:
        variant: its architecture, or "interpreter".
        device: where everything lies.
        residency: what `reside` shall do.
        kernels: what computes.
        buckets: numbers of nodes that passes are rounded up to, ascending.
    """

    variant: str
    device: torch.device
    residency: ResidencyChoice
    kernels: Kernels = field(repr=False)
    buckets: tuple[int, ...] = BUCKETS
    name: str = "triton"

    @classmethod
    def create(cls, options: BackendOptions) -> GpuBackend:
        """Use the first GPU, or the interpreter where Triton was told to.

        Raises:
            BackendError: it cannot be used, says why; or there is no such residency.
        """
        if options.residency not in RESIDENCIES:
            known = ", ".join(RESIDENCIES)
            raise BackendError(f"residency is {options.residency!r}; known are {known}")
        interprets = is_interpreted()
        reason = None if interprets else why_unavailable()
        if reason is not None:
            raise BackendError(reason)
        device, variant, gpu = torch.device("cpu"), "interpreter", ""
        if not interprets:
            device = torch.device("cuda", torch.cuda.current_device())
            gpu = torch.cuda.get_device_name(device)
            variant = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        launch = importlib.import_module("quantized_lm.ops.triton.launch")
        kernels = launch.Kernels(read_tiles(gpu), is_plain=interprets)
        buckets = INTERPRETED_BUCKETS if interprets else BUCKETS
        return cls(variant, device, options.residency, kernels, buckets)

    @property
    def activations(self) -> Activations:
        """What products are computed from."""
        return "int8"

    def prepare(self, tensor: QuantizedTensor) -> PackedWeight:
        """Repack for the kernels, expanded only where that was asked for."""
        weight = lay_out(tensor, expands=self.residency == "expanded").to(self.device)
        return PackedWeight(
            backend=self,
            format=tensor.format,
            shape=tensor.shape,
            group_size=tensor.group_size,
            words=weight.words,
            scale=weight.scale,
            levels=weight.levels,
            layout=(*weight.layout.numbers, *weight.tables),
        )

    def reside(self, weights: Sequence[DeviceWeight], *, rereads: bool) -> Residency:
        """How a model's matrices shall lie.

        What "auto" takes: packed for a model that reads its weights again for every level of a
        tree, where bytes are the time; else expanded, which spares the decoding, where it is a
        small part of the memory that is free.
        """
        if self.residency != "auto":
            return self.residency
        wide = sum(one.layout.num_rows * one.layout.num_columns for one in weights)
        fits = wide * _EXPANDED_SHARE <= self._free_bytes()
        return "packed" if rereads or not fits else "expanded"

    def linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """(M, K) float32 times weight transposed: (M, N) float32."""
        y: Tensor = linear_triton(x, weight.parts, weight.layout, self.variant)
        return y

    def embed(self, weight: PackedWeight, tokens: Tensor) -> Tensor:
        """Dequantize rows: (T,) int64 to (T, K) float32."""
        rows: Tensor = embed_triton(tokens, weight.parts, weight.layout, self.variant)
        return rows

    def gather_log_prob(
        self, hidden: Tensor, weight: PackedWeight, rows: Tensor, tokens: Tensor
    ) -> Tensor:
        """Compute log softmax(hidden @ weight.T)[rows, tokens]: (C,) float32."""
        log_prob: Tensor = gather_log_prob_triton(
            hidden, rows, tokens, weight.parts, weight.layout, self.variant
        )
        return log_prob

    def _free_bytes(self) -> int:
        if self.device.type == "cpu":
            return LEAST_FREE_BYTES
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free)


def device_weight(weight: PackedWeight) -> DeviceWeight:
    """What a backend of this kind prepared, as its kernels take it."""
    return _device_weight(weight.parts, weight.layout)


def resident(weight: DeviceWeight, residency: Residency) -> DeviceWeight:
    """The weight as `GpuBackend.reside` wants it."""
    if residency != "expanded" or weight.layout.bits == EXPANDED_BITS:
        return weight
    return expand(weight.to(torch.device("cpu"))).to(weight.words.device)


def _device_weight(parts: Sequence[Tensor], layout: Sequence[int]) -> DeviceWeight:
    words, scale, levels = parts
    return DeviceWeight(DeviceLayout(*layout[:7]), words, scale, levels, tuple(layout[7:]))


# Operators take tensors and numbers alone, so they find the kernels again by the variant.
def _kernels_of(variant: str) -> Kernels:
    launch = importlib.import_module("quantized_lm.ops.triton.launch")
    interprets = variant == "interpreter"
    gpu = "" if interprets else torch.cuda.get_device_name()
    kernels: Kernels = launch.Kernels(read_tiles(gpu), is_plain=interprets)
    return kernels


def _quantized(x: Tensor, weight: DeviceWeight, kernels: Kernels) -> Codes:
    codes = Codes(torch.empty(x.shape, dtype=torch.int8, device=x.device), x.new_empty(len(x)))
    kernels.quantize(x, len(x), codes, is_quads=weight.layout.is_quads)
    return codes


@torch.library.custom_op("secondpass::linear_triton", mutates_args=())
def linear_triton(
    x: Tensor, parts: Sequence[Tensor], layout: Sequence[int], variant: str
) -> Tensor:
    """Multiply: (M, K) float32 to (M, N) float32.

    Args:
        x: on any device; the result is on the same.
        parts, layout: as `GpuBackend.prepare` made them. variant: of the backend.
    """
    weight, kernels = _device_weight(parts, layout), _kernels_of(variant)
    y = x.new_empty((len(x), weight.layout.num_rows), device=parts[0].device)
    rows = x.detach().to(parts[0].device)
    for first in range(0, len(x), _ROWS_AT_ONCE):
        some = rows[first : first + _ROWS_AT_ONCE]
        codes = _quantized(some, weight, kernels)
        kernels.matmul(weight, codes, len(some), y[first : first + len(some)])
    return y.to(x.device)


@linear_triton.register_fake
def _linear_fake(x: Tensor, _: Sequence[Tensor], layout: Sequence[int], _variant: str) -> Tensor:
    return x.new_empty((x.shape[0], layout[0]))


@torch.library.custom_op("secondpass::embed_triton", mutates_args=())
def embed_triton(
    tokens: Tensor, parts: Sequence[Tensor], layout: Sequence[int], variant: str
) -> Tensor:
    """Dequantize rows: (T,) int64 to (T, K) float32. Other arguments as in linear_triton.

    Raises:
        ShapeError: a token is out of range.
    """
    require_below(tokens, layout[0], "tokens")
    weight, kernels = _device_weight(parts, layout), _kernels_of(variant)
    some = tokens.to(parts[0].device, torch.int32)
    y = torch.empty((len(tokens), layout[1]), device=parts[0].device)
    if len(tokens):
        kernels.embed(weight, some, len(tokens), y)
    return y.to(tokens.device)


@embed_triton.register_fake
def _embed_fake(
    tokens: Tensor, _: Sequence[Tensor], layout: Sequence[int], _variant: str
) -> Tensor:
    return tokens.new_empty((tokens.shape[0], layout[1]), dtype=torch.float32)


@torch.library.custom_op("secondpass::gather_log_prob_triton", mutates_args=())
def gather_log_prob_triton(
    hidden: Tensor,
    rows: Tensor,
    tokens: Tensor,
    parts: Sequence[Tensor],
    layout: Sequence[int],
    variant: str,
) -> Tensor:
    """Compute log softmax(hidden @ weight.T)[rows, tokens]: (C,) float32.

    Raises:
        ShapeError: a row or token is out of range.
        NonFiniteError: hidden holds NaN or infinity.
    """
    require_finite(hidden, "hidden")
    require_below(rows, len(hidden), "rows")
    require_below(tokens, layout[0], "tokens")
    weight, kernels = _device_weight(parts, layout), _kernels_of(variant)
    device = parts[0].device
    x = hidden.detach().to(device)
    log_sum, log_prob = x.new_empty(len(x)), x.new_empty(len(rows))
    if not len(rows):
        return log_prob.to(hidden.device)
    codes = _quantized(x, weight, kernels)
    partial = x.new_empty((2, len(x), kernels.num_chunks(weight.layout)))
    nodes = torch.arange(len(x), dtype=torch.int32, device=device)
    every = Codes(codes.codes, codes.step, nodes)
    kernels.log_sum_exp(weight, every, len(x), partial, log_sum)
    asked = [part.to(device, torch.int32) for part in (rows, tokens)]
    kernels.answer(weight, codes, log_sum, asked[0], asked[1], log_prob)
    return log_prob.to(hidden.device)


@gather_log_prob_triton.register_fake
def _gather_log_prob_fake(hidden: Tensor, rows: Tensor, *_: object) -> Tensor:
    return hidden.new_empty((rows.shape[0],))
