"""ADMM: training under the constraint that every weight lies on the grid.

The constrained problem (Leng et al., "Extremely low bit neural network: squeeze the last bit out
with ADMM", AAAI 2018; for language models Xu et al., ICASSP 2020, arXiv 2111.14836, and ICASSP
2021, arXiv 2112.11540) is: minimize CE(theta) so that theta = G with G = scale * levels[codes].
Names and the scaled form are those of Boyd et al., "Distributed optimization and statistical
learning via the alternating direction method of multipliers", 2011, section 3.1.1. In turn:

1. theta: updates that make CE(theta) + rho / 2 * ||theta - G + u||^2 smaller (the training loop's)
2. G = the point of the grid nearest to theta + u
3. u = u + theta - G

Only the abstracts of the two papers on language models could be read. How often steps 2 and 3 are
taken, how rho is applied, chosen and grows, and the last phase with codes frozen are
reconstructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantized_lm.errors import FormatError
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.levels import Levels, require_matrix
from quantized_lm.quant.quantizers.projection import project_tied
from quantized_lm.quant.quantizers.scales import scale_of
from quantized_lm.quant.quantizers.ties import Ties
from quantized_lm.quant.quantizers.trained import TrainedQuantizer
from quantized_lm.quant.tensor import QuantizedTensor


@dataclass(frozen=True)
class AdmmSettings:
    """The schedule.

    Attributes:
        tie: which rows share a scale: "row", "tensor" or "cluster:N".
        decoupled: pull theta to its target after every update, theta += rho * (G - u - theta), as
            AdamW decays weights, instead of adding rho / 2 * ||theta - G + u||^2 to the loss.
            Optimizers that normalize gradients (Muon, Adam) would lose rho's proportion to CE.
        rho: at the start. Decoupled, the share of the way that one update goes. In the loss, times
            the starting ||theta||^2: twice the nats per token that a matrix costs which is off its
            target by as much as it is long.
        rho_growth: rho is this many times as large when codes freeze; it grows geometrically.
        interval: updates of theta between steps of G and u.
        tuning_share: last share of training, in which codes are frozen and scales learn.
    """

    tie: str = "row"
    decoupled: bool = True
    rho: float = 0.02
    rho_growth: float = 25.0
    interval: int = 10
    tuning_share: float = 0.2

    def __post_init__(self) -> None:
        if not (self.rho > 0 and self.rho_growth > 0):
            raise FormatError(
                f"rho is {self.rho}, rho_growth is {self.rho_growth}; need both above 0"
            )
        if self.interval < 1:
            raise FormatError(f"interval is {self.interval}; need at least 1")
        if not 0 <= self.tuning_share <= 1:
            raise FormatError(f"tuning_share is {self.tuning_share}; need 0 to 1")


class AdmmQuantizer(TrainedQuantizer):
    """Gives the float weight while theta trains; on the grid in eval mode and once codes freeze.

    The weight gets no gradient any more when codes are frozen.

    Args:
        weight: (N, K) float32: theta at the start, and what rho is relative to.
        grid: format and levels; one scale for a whole row or more.
        settings: the schedule.

    Attributes:
        codes: (N, K) uint8 and log_scale: (G, 1), what G is.
        dual: (N, K), u. anchor: (N, K), G - u.
        power: ||theta||^2 at the start. rho: as it now is.
        updates: made so far. is_frozen: whether codes are.

    Raises:
        FormatError: weight, grid and settings do not fit together.
    """

    codes: Tensor
    dual: Tensor
    anchor: Tensor
    power: Tensor
    rho: Tensor
    updates: Tensor
    frozen: Tensor
    is_frozen: bool

    def __init__(self, weight: Tensor, grid: Grid, settings: AdmmSettings) -> None:
        super().__init__()
        require_matrix(weight)
        weight = weight.detach()
        self.settings = settings
        self.levels = Levels(grid).to(weight.device)
        self.ties = Ties(weight, settings.tie)
        point = project_tied(weight, self.levels, self.ties)
        # Not `log_of`: with another scale than theirs the codes would be no nearest point.
        self.log_scale = nn.Parameter(point.scale.log())
        self.register_buffer("codes", point.codes)
        self.register_buffer("dual", torch.zeros_like(weight))
        power = weight.square().sum()
        self.register_buffer("power", torch.where(power > 0, power, 1.0))
        self.register_buffer("rho", torch.tensor(settings.rho))
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("frozen", torch.tensor(False))  # noqa: FBT003 - the value is the point
        self.register_buffer("anchor", torch.zeros_like(weight), persistent=False)
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]
        self.refresh()

    def forward(self, weight: Tensor) -> Tensor:
        """Theta while it trains, else G: (N, K) float32 -> (N, K) float32."""
        if self.training and not self.is_frozen:
            return weight
        return self._point()

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> QuantizedTensor:  # noqa: ARG002 - G is state
        """G, packed."""
        return self.levels.pack(self.codes, self._scale())

    def penalty(self, weight: Tensor) -> Tensor:
        """Compute rho / 2 * ||theta - G + u||^2 in nats per token, or zero if it is decoupled.

        The sum over all weights is divided by the starting ||theta||^2, so that one rho suits
        matrices of any scale and size.
        """
        if self.is_frozen or self.settings.decoupled:
            return weight.new_zeros(())
        return self.rho / (2 * self.power) * (weight - self.anchor).square().sum()

    @torch.no_grad()
    def step(self, weight: Tensor, progress: float) -> None:
        """Pull theta; every `interval` updates move G and u; freeze codes when it is time."""
        if self.is_frozen:
            return
        self.updates += 1
        settings = self.settings
        if settings.decoupled:
            weight.lerp_(self.anchor, min(1.0, float(self.rho)))
        freezes = progress > 1 - settings.tuning_share
        if freezes or progress >= 1 or int(self.updates) % settings.interval == 0:
            trained = min(1.0, progress / max(1 - settings.tuning_share, 1e-9))
            self._move(weight, settings.rho * settings.rho_growth**trained)
            self.frozen.fill_(freezes)
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring what follows from the state up to date."""
        self.anchor.copy_(self._point() - self.dual)
        # What forward branches on is no tensor: torch.compile could not.
        self.is_frozen = bool(self.frozen)

    def _move(self, weight: Tensor, rho: float) -> None:
        """Steps 2 and 3. The price rho * u of the constraint outlives a change of rho."""
        self.dual *= self.rho / rho
        self.rho.fill_(rho)
        target = weight + self.dual
        start = self.log_scale.exp()
        point = project_tied(target, self.levels, self.ties, start=start)
        self.log_scale.copy_(point.scale.log())
        self.codes.copy_(point.codes)
        self.dual.copy_(target - self._point())

    def _point(self) -> Tensor:
        """G, with a gradient for the scales: (N, K) float32."""
        return self._scale() * self.levels.values[self.codes.int()]

    def _scale(self) -> Tensor:
        return self.ties.spread(scale_of(self.log_scale))


def _refresh(quantizer: AdmmQuantizer, *_: Any) -> None:
    """Refresh what was loaded; a function, so that quantizers can be copied."""
    quantizer.refresh()
