"""Trace of the loss's Hessian by matrix, matrix-free: Hutchinson's estimator.

The loss is the mean cross entropy of calibration windows, nats per token.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline.batches import IGNORED, Windows
from quantized_lm.pipeline.measured import Estimate, MeasuredRows, estimate_mean
from quantized_lm.pipeline.progress import progress_bar

# Of the root mean square of all weights. Ten times less or more changes no trace by 0.1 % of the
# sum; beyond that float32 rounding or the third derivative show.
_STEP = 3e-4


@dataclass(frozen=True)
class ProbePlan:
    """When to stop.

    Attributes:
        tolerance: relative standard error of the summed trace that is good enough.
        min_probes, max_probes: at least and at most so many, whatever the error.
        seed: of the probes.
    """

    tolerance: float = 0.01
    min_probes: int = 32
    max_probes: int = 256
    seed: int = 0

    def is_done(self, traces: NDArray[np.float64]) -> bool:
        """Whether the probes so far, (probes, matrices), are enough."""
        if len(traces) < self.min_probes:
            return False
        total = estimate_mean(traces.sum(axis=1))
        precise = total.standard_error <= self.tolerance * abs(total.mean)
        return precise or len(traces) >= self.max_probes


def estimate_traces(
    model: FloatModel, batches: Sequence[Windows], rows: MeasuredRows, plan: ProbePlan
) -> dict[str, Estimate]:
    """Tr(H_ii) of every packed matrix's diagonal block of the Hessian, by parameter name.

    Hutchinson (1990): E[z^T H z] = Tr(H) for entries z = +-1, independent and even. One product
    with z over all matrices serves every block: z_i^T (H z)_i = z_i^T H_ii z_i + sum over j != i
    of z_i^T H_ij z_j, and the second part has mean zero because z_i and z_j are independent. It
    adds variance, which the standard errors contain.

    H z is the central difference of gradients, (g(w + e z) - g(w - e z)) / 2e: first-order
    gradients are all it takes, so fused attention and LSTM kernels serve too, and its error of
    order e^2 is far below that of the estimate.

    Each probe draws its own z and one of the batches, weighted by its tokens, so the mean is that
    of all windows and the standard error covers what the text adds. A trace may come out negative:
    away from a minimum the Hessian is indefinite.

    Args:
        batches: calibration windows.
        rows: probes measured before; new ones are added.
    """
    probed = _probed_copy(model)
    parameters = dict(probed.named_parameters())
    matrices = {name: parameters[name] for name in matrix_names(probed)}
    share = len(batches) / sum(windows.num_tokens for windows in batches)
    with progress_bar() as bar:
        task = bar.add_task("Hessian traces", total=plan.max_probes, status="")
        while not plan.is_done(rows.values()):
            generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + len(rows))
            drawn = int(torch.randint(len(batches), (), generator=generator))
            windows = batches[drawn]
            z = [_rademacher(matrix.shape, generator) for matrix in matrices.values()]
            product = hessian_product(probed, list(matrices.values()), windows, z)
            weight = windows.num_tokens * share
            rows.extend([[weight * _dot(a, b) for a, b in zip(z, product, strict=True)]])
            bar.update(task, completed=len(rows), status=_status(rows.values()))
    return {
        name: estimate_mean(values) for name, values in zip(matrices, rows.values().T, strict=True)
    }


def hessian_product(
    model: FloatModel, matrices: Sequence[nn.Parameter], windows: Windows, z: Sequence[Tensor]
) -> list[Tensor]:
    """(H z)_i for each of the matrices, of their shapes, where z moves all of them at once."""
    weights = [matrix.detach().clone() for matrix in matrices]
    squares = sum(float(weight.square().sum()) for weight in weights)
    step = _STEP * math.sqrt(squares / sum(weight.numel() for weight in weights))

    def gradient_at(distance: float) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for matrix, weight, direction in zip(matrices, weights, z, strict=True):
                matrix.copy_(weight + distance * direction)
        return torch.autograd.grad(mean_cross_entropy(model, windows), matrices)

    ahead, behind = gradient_at(step), gradient_at(-step)
    with torch.no_grad():
        for matrix, weight in zip(matrices, weights, strict=True):
            matrix.copy_(weight)
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def mean_cross_entropy(model: FloatModel, windows: Windows) -> Tensor:
    """Nats per token, in the model's own precision."""
    inputs, document, targets = map(
        torch.from_numpy, (windows.inputs, windows.document, windows.targets)
    )
    logits = model.embedding.logits(model(inputs, document))
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def _probed_copy(model: FloatModel) -> FloatModel:
    """Whose matrices have gradients and may be moved."""
    probed = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    for name in matrix_names(probed):
        probed.get_parameter(name).requires_grad_()
    return probed


def _rademacher(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _status(traces: NDArray[np.float64]) -> str:
    total = estimate_mean(traces.sum(axis=1))
    return f"sum {total.mean:.4g} +- {total.standard_error:.2g}"
