"""Does a backend compute what the format means?

Products of float32 activations are compared with float64, with a bound on rounding; products of
int8 activations have one right answer, the reference's, to the last bit. Tests run it over formats
and shapes, `bench` before it times, and a load may run it as a self-test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import Activations, Backend
from quantized_lm.ops.embedding import embed
from quantized_lm.ops.linear import linear
from quantized_lm.ops.output import gather_log_prob
from quantized_lm.ops.reference import ReferenceBackend
from quantized_lm.quant.tensor import QuantizedTensor

# Rounding error of a float32 sum of products, relative to the sum of their magnitudes. Random
# errors grow like sqrt(K) * 6e-8; this leaves room to K = 10,000.
_SUM_TOLERANCE = 4e-6
# Rounding of a log-probability itself, relative and absolute.
_LOG_PROB_TOLERANCE = 4e-6
# Rounding of the log-sum-exp and of its difference to a logit, relative to the largest logit.
_LOGIT_TOLERANCE = 4e-7
# So that sums of float32 numbers too small for full precision are not held to a relative bound.
_SMALLEST = 1e-37


@dataclass(frozen=True)
class _Product:
    """What a product must be.

    Attributes:
        value: (M, N) float64.
        bound: how far off it may be, (M, N) or (1, 1).
        logit_bound: (M, N), how far off a log-probability may be for each of its two logits.
    """

    value: Tensor
    bound: Tensor
    logit_bound: Tensor


def _float32_product(tensor: QuantizedTensor, x: Tensor) -> _Product:
    weight = torch.from_numpy(tensor.dequantize()).double()
    bound = _SUM_TOLERANCE * (x.abs().double() @ weight.abs().T) + _SMALLEST
    return _Product(x.double() @ weight.T, bound, bound)


def _int8_product(tensor: QuantizedTensor, x: Tensor) -> _Product:
    value = linear(x, ReferenceBackend(activations="int8").prepare(tensor)).double()
    return _Product(value, torch.zeros(1, 1), _LOGIT_TOLERANCE * value.abs())


_PRODUCTS: Mapping[Activations, Callable[[QuantizedTensor, Tensor], _Product]] = MappingProxyType(
    {"float32": _float32_product, "int8": _int8_product}
)


def require_parity(backend: Backend, tensor: QuantizedTensor, x: Tensor) -> None:
    """Compare the backend's three operations with their definitions.

    Args:
        backend: what to check.
        tensor: (N, K) weight.
        x: (M, K) float32, finite, M at least 1.

    Raises:
        BackendError: a result is further off than rounding explains, or is NaN.
    """
    packed = backend.prepare(tensor)
    everything = torch.arange(tensor.shape[0])
    weight = torch.from_numpy(tensor.dequantize()).double()
    _require("embed", backend, embed(packed, everything), weight, torch.zeros(1))

    product = _PRODUCTS[backend.activations](tensor, x)
    _require("linear", backend, linear(x, packed), product.value, product.bound)

    rows = torch.arange(len(x)).repeat_interleave(len(everything))
    tokens = everything.repeat(len(x))
    # The last answer first: nothing may depend on the order of the questions.
    actual = gather_log_prob(x, packed, rows.flip(0), tokens.flip(0)).flip(0)
    log_prob = product.value.log_softmax(dim=1)
    bound = (
        product.logit_bound
        + product.logit_bound.amax(dim=1, keepdim=True)
        + _LOG_PROB_TOLERANCE * (1 + log_prob.abs())
    )
    _require("gather_log_prob", backend, actual.reshape(log_prob.shape), log_prob, bound)


def _require(
    operation: str, backend: Backend, actual: Tensor, expected: Tensor, bound: Tensor
) -> None:
    excess = (actual.double() - expected).abs() - bound
    # Written so that NaN fails too.
    if not bool((excess <= 0).all()):
        raise BackendError(
            f"{operation} of {backend.name} ({backend.variant}, {backend.activations} activations) "
            f"is {float(excess.max()):.3g} further from its definition than rounding allows"
        )
