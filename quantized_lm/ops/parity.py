"""Does a backend compute what the format means? Compared with float64, with a bound on rounding.

Tests run it over formats and shapes, `bench` before it times, and a load may run it as a self-test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import Backend
from quantized_lm.ops.embedding import embed
from quantized_lm.ops.linear import linear
from quantized_lm.ops.output import gather_log_prob
from quantized_lm.quant.tensor import QuantizedTensor

# Rounding error of a float32 sum of products, relative to the sum of their magnitudes. Random
# errors grow like sqrt(K) * 6e-8; this leaves room to K = 10,000.
_SUM_TOLERANCE = 4e-6
# Rounding of a log-probability itself, relative and absolute.
_LOG_PROB_TOLERANCE = 4e-6
# So that sums of float32 numbers too small for full precision are not held to a relative bound.
_SMALLEST = 1e-37


def require_parity(backend: Backend, tensor: QuantizedTensor, x: Tensor) -> None:
    """Compare the backend's three operations with the same formulas in float64.

    Args:
        backend: what to check.
        tensor: (N, K) weight.
        x: (M, K) float32, finite, M at least 1.

    Raises:
        BackendError: a result is further off than float32 rounding explains, or is NaN.
    """
    weight = torch.from_numpy(tensor.dequantize())
    packed = backend.prepare(tensor)
    everything = torch.arange(tensor.shape[0])
    _require("embed", backend, embed(packed, everything), weight.double(), torch.zeros(1))

    expected = x.double() @ weight.double().T
    bound = _SUM_TOLERANCE * (x.abs().double() @ weight.abs().double().T) + _SMALLEST
    _require("linear", backend, linear(x, packed), expected, bound)

    rows = torch.arange(len(x)).repeat_interleave(len(everything))
    tokens = everything.repeat(len(x))
    # The last answer first: nothing may depend on the order of the questions.
    actual = gather_log_prob(x, packed, rows.flip(0), tokens.flip(0)).flip(0)
    log_prob = expected.log_softmax(dim=1)
    bound = bound + bound.amax(dim=1, keepdim=True) + _LOG_PROB_TOLERANCE * (1 + log_prob.abs())
    _require("gather_log_prob", backend, actual.reshape(expected.shape), log_prob, bound)


def _require(
    operation: str, backend: Backend, actual: Tensor, expected: Tensor, bound: Tensor
) -> None:
    excess = (actual.double() - expected).abs() - bound
    # Written so that NaN fails too.
    if not bool((excess <= 0).all()):
        raise BackendError(
            f"{operation} of {backend.name} ({backend.variant}) is {float(excess.max()):.3g} "
            "further from the float64 result than rounding allows"
        )
