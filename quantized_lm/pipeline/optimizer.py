"""Optimizers and rate schedules shared by the stages that train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.overrides import TorchFunctionMode

from quantized_lm.pipeline.precision import multiplies_in_bfloat16


def make_optimizers(
    matrices: Iterable[nn.Parameter],
    others: Iterable[nn.Parameter],
    *,
    matrix_lr: float,
    other_lr: float,
    weight_decay: float,
) -> list[Optimizer]:
    """Muon (Jordan et al., 2024) for the projections, AdamW for embedding, norms and scalars."""
    projections = list(matrices)
    is_short = all(multiplies_in_bfloat16(matrix.device) for matrix in projections)
    muon = (Muon if is_short else _Float32Muon)(
        projections, lr=matrix_lr, weight_decay=weight_decay, momentum=0.95, nesterov=True
    )
    adam = AdamW(list(others), lr=other_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adam]


class _Float32Muon(Muon):
    """Muon that multiplies in float32: torch's own always asks for bfloat16."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with _NoBfloat16():
            return super().step(closure)  # type: ignore[no-untyped-call]


class _NoBfloat16(TorchFunctionMode):
    """Leaves numbers as they are where torch would round them to bfloat16."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is Tensor.bfloat16:
            return arguments[0].clone()  # a copy, as rounding makes one: it is changed in place
        return function(*arguments, **(options or {}))


def set_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group to `factor` times the rate it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("full_lr", group["lr"]) * factor


def rate_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    decay_share: float,
    restarts: Sequence[int] = (),
) -> float:
    """Warm-up, stable, linear decay to zero: the factor for the update after `step` updates.

    Between two restarts, or one and the end, all of it happens anew.
    """
    start = max((restart for restart in restarts if restart <= step), default=0)
    end = min((restart for restart in restarts if restart > step), default=steps)
    decay_steps = max(1, round((end - start) * decay_share))
    warm = (step - start + 1) / (warmup_steps + 1)
    return min(1.0, warm, (end - step) / decay_steps)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should train it: a projection's, not a table by token or depth."""
    return parameter.ndim == 2 and not name.startswith(("embedding", "positions"))
