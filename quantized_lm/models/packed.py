"""From tensors to a model that scores: the engine of its backend, or the reference's module."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.models import ARCHITECTURES
from quantized_lm.models.base import LanguageModel
from quantized_lm.models.config import ModelConfig, Shapes, Weights, is_packed
from quantized_lm.models.native import NativeModel
from quantized_lm.models.plan import ModelPlan
from quantized_lm.ops import Backend
from quantized_lm.ops.cpu import CpuBackend
from quantized_lm.quant.tensor import QuantizedTensor


def packed_model(
    architecture: str,
    config: ModelConfig,
    packed: Mapping[str, QuantizedTensor],
    plain: Mapping[str, NDArray[np.float32]],
    backend: Backend,
) -> LanguageModel:
    """Make a model from its tensors.

    Args:
        architecture: key in ARCHITECTURES, whose config this is.
        packed: one tensor for each of its matrices.
        plain: every other parameter.
        backend: lays the packed tensors out and computes with them.

    Raises:
        FormatError: a tensor is missing, unexpected or of another shape; names it.
    """
    if backend.name == "reference":
        from quantized_lm.models.layers import load_packed  # noqa: PLC0415 - torch's

        return load_packed(ARCHITECTURES[architecture][1](config), packed, plain, backend)
    require_fit(config.shapes(), packed, plain)
    prepared = {name: backend.prepare(tensor) for name, tensor in packed.items()}
    return engine_of(config.plan(Weights(prepared, plain)), backend)


def engine_of(plan: ModelPlan, backend: Backend) -> LanguageModel:
    """What runs a plan whose weights this backend, which has an engine, has prepared."""
    if isinstance(backend, CpuBackend):
        return NativeModel(plan, backend)
    from quantized_lm.models.device import DeviceModel  # noqa: PLC0415 - torch's
    from quantized_lm.ops.gpu import GpuBackend  # noqa: PLC0415

    assert isinstance(backend, GpuBackend)
    return DeviceModel(plan, backend)


def require_fit(
    shapes: Shapes,
    packed: Mapping[str, QuantizedTensor],
    plain: Mapping[str, NDArray[np.float32]],
) -> None:
    """Require one tensor for each parameter, packed where matrices are.

    Raises:
        FormatError: one is missing, unexpected or of another shape; names it.
    """
    matrices = {name for name, shape in shapes.items() if is_packed(name, shape)}
    given: dict[str, QuantizedTensor | NDArray[np.float32]] = {**packed, **plain}
    odd = sorted(set(shapes) ^ set(given)) or sorted(matrices ^ set(packed))
    if odd:
        raise FormatError(f"tensor {odd[0]!r} does not fit the architecture's parameters")
    for name, value in given.items():
        if tuple(value.shape) != shapes[name]:
            raise FormatError(f"tensor {name!r} is {value.shape}; need {shapes[name]}")
