"""Search stage: formats by gradient descent, in a network that holds all of them at once.

A differentiable architecture search in the manner of the papers' method, as reconstructed in
papers.md A.6: every matrix is a mixture of its quantized forms of one shared float weight, mixed
by Gumbel-softmax over logits of its own, and the logits learn along with the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.optim import Adam

from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline.allocate import Allocation, allocate_costs
from quantized_lm.pipeline.batches import Windows
from quantized_lm.pipeline.checkpoint import Progress, Training, load_weights
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.loop import (
    CHECKPOINT_EVERY_S,
    LoopPlan,
    Objective,
    Objectives,
    run_loop,
)
from quantized_lm.pipeline.quantize import load_teacher, optimizers_of, task_loss
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.sensitivity import weights_hash
from quantized_lm.pipeline.sizes import SizeTable, coded_size_table, size_table
from quantized_lm.pipeline.train import make_model, make_packer, next_token_loss, recipe_key
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers import TRAINED_QUANTIZERS
from quantized_lm.records import content_key, read_record, write_record

_SEED_OFFSET = 102
_TRAJECTORY_POINTS = 40


@dataclass(frozen=True)
class SearchPlan:
    """What to search for, and how. Rates and batches of the weights are the quantize stage's.

    Attributes:
        budget_bytes: of weights.safetensors, everything counted.
        coded: whether a matrix counts as it is stored, in its smallest coding, rather than as it
            is in memory.
        choices: formats such as "2bit" or "4bit:normal".
        steps: updates, of weights and of logits in turn.
        logit_lr: Adam's, for the logits.
        size_weight: nats per token that a size of twice the budget costs.
        hot, cold: temperature of the mixture at the first update and at the last.
        eval_every: steps between measurements on dev.
    """

    budget_bytes: int
    choices: tuple[str, ...]
    steps: int = 400
    logit_lr: float = 0.05
    size_weight: float = 2.0
    hot: float = 2.0
    cold: float = 0.2
    eval_every: int = 100
    coded: bool = False


@dataclass(frozen=True)
class SearchReport:
    """What a search came to.

    Attributes:
        key: names teacher, text and plan.
        plan: what was searched for. allocation: what was found.
        trajectory: share of each choice, (points, choices) by tensor name, evenly spaced over the
            search; each row sums to 1.
    """

    key: str
    plan: SearchPlan
    allocation: Allocation
    trajectory: dict[str, tuple[tuple[float, ...], ...]]


class MixedQuantizer(nn.Module):
    """A parametrization: the mixture of a weight's quantized forms.

    sum over b of a[b] * Q_b(weight), where a is a sample of Gumbel-softmax(logits, temperature)
    (Jang et al., ICLR 2017) in training mode and softmax(logits) in eval mode. The Q_b round with
    learned row scales, which start at those of round-to-nearest, and pass gradients straight
    through.

    Weights and logits learn in turn, each with the other held fixed: first-order DARTS (Liu et al.,
    ICLR 2019). Every update sees text of its own, so the logits are judged on text that the last
    update of the weights has not seen.

    Args:
        weight: (N, K) float32, what scales are fitted to.
        plan: choices and temperatures.
    """

    updates: Tensor
    temperature: Tensor
    trajectory: Tensor

    def __init__(self, weight: Tensor, plan: SearchPlan) -> None:
        super().__init__()
        entry = TRAINED_QUANTIZERS["learned"]
        self.branches = nn.ModuleList(
            entry.make(weight, Grid.parse(choice), entry.settings()) for choice in plan.choices
        )
        self.plan = plan
        self.logits = nn.Parameter(torch.zeros(len(plan.choices)))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("temperature", torch.tensor(plan.hot))
        points = torch.zeros(_TRAJECTORY_POINTS, len(plan.choices))
        self.register_buffer("trajectory", points)

    @property
    def trains_logits(self) -> bool:
        """Whether this update is the logits'; else it is the weights'."""
        return int(self.updates) % 2 == 1

    def shares(self) -> Tensor:
        """(C,) softmax(logits)."""
        return self.logits.softmax(-1)

    def forward(self, weight: Tensor) -> Tensor:
        """(N, K) float32 -> (N, K) float32."""
        shares = self.shares()
        if self.training:
            shares = functional.gumbel_softmax(self.logits, tau=float(self.temperature))
        parts = torch.stack([branch(weight) for branch in self.branches], dim=-1)
        if self.trains_logits:
            return parts.detach() @ shares
        return parts @ shares.detach()

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Called after each update with the share of them that is made."""
        self.updates += 1
        self.temperature.fill_(self.plan.hot * (self.plan.cold / self.plan.hot) ** progress)
        point = int(progress * _TRAJECTORY_POINTS)
        if point:
            self.trajectory[point - 1] = self.shares()


def search(
    recipe: Recipe,
    plan: SearchPlan,
    *,
    run: Path,
    out: Path,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> SearchReport:
    """Search, or read what was found for the same; a killed search goes on.

    loss = task loss of the quantize stage + size_weight * max(0, expected bytes / budget - 1),
    where the expectation is over softmax(logits). In the end each matrix gets the choice that is
    most probable of all allocations within the budget: the exact minimum of the summed -log shares.
    Only matrices, their scales and the logits learn.

    Args:
        run: folder of the train stage.
        out: folder for the search's files; the report is search.json.

    Raises:
        DataError: there is no trained teacher, or `out` holds another search.
        InputError: the budget is below the smallest reachable size.
        FormatError: there is no such format.
        RecipeError: the search diverged.
    """
    corpus = open_corpus(recipe.corpus, run / "corpus")
    teacher = load_teacher(recipe, run)
    sizes = (coded_size_table if plan.coded else size_table)(teacher, plan.choices)
    zeros = {name: dict.fromkeys(row, 0.0) for name, row in sizes.packed.items()}
    allocate_costs(zeros, sizes, budget_bytes=plan.budget_bytes, metric="nas")  # refuses early
    weights = replace(recipe.quantize, formats={}, method="", settings={})
    key = content_key(recipe_key(recipe, corpus.key), weights, asdict(plan), weights_hash(teacher))
    path = out / "search.json"
    if path.exists() and (report := read_search(path)).key == key:
        return report
    supernet = make_supernet(recipe, teacher, plan)
    mixtures = mixtures_of(supernet)
    loop = _loop(recipe, plan, out=out, key=key, checkpoint_every_s=checkpoint_every_s)
    run_loop(
        Training(supernet, _optimizers(recipe, plan, supernet), Progress(), _stepper(mixtures)),
        loop,
        make_packer(recipe, corpus, seed=loop.seed),
        corpus,
        Objectives(
            _objective(recipe, supernet, teacher, _size_penalty(mixtures, sizes, plan)),
            next_token_loss(supernet, compiled=False),
        ),
    )
    supernet.load_state_dict(load_weights(out / "checkpoint.pt"))
    report = SearchReport(
        key=key,
        plan=plan,
        allocation=_most_probable(mixtures, sizes, plan),
        trajectory={name: _points(mixture) for name, mixture in mixtures.items()},
    )
    write_record(path, report)
    return report


def read_search(path: Path) -> SearchReport:
    """What `search` saved.

    Raises:
        DataError: no such file, or it holds something else.
    """
    return read_record(SearchReport, path, what="search")


def make_supernet(recipe: Recipe, teacher: FloatModel, plan: SearchPlan) -> FloatModel:
    """A copy of the teacher whose matrices are mixtures, and in which nothing else learns."""
    supernet = make_model(recipe)
    supernet.load_state_dict(teacher.state_dict())
    supernet.requires_grad_(requires_grad=False)
    supernet.set_dropout(recipe.quantize.dropout)
    for name in matrix_names(supernet):
        module = supernet.get_submodule(name.removesuffix(".weight"))
        weight = module.get_parameter("weight").requires_grad_()
        parametrize.register_parametrization(module, "weight", MixedQuantizer(weight, plan))
    return supernet


def mixtures_of(supernet: nn.Module) -> dict[str, MixedQuantizer]:
    """Each matrix's mixture, by parameter name."""
    return {
        f"{path.removesuffix('.parametrizations.weight.0')}.weight": module
        for path, module in supernet.named_modules()
        if isinstance(module, MixedQuantizer)
    }


def _loop(
    recipe: Recipe, plan: SearchPlan, *, out: Path, key: str, checkpoint_every_s: float
) -> LoopPlan:
    return LoopPlan(
        title=f"search {recipe.name}",
        seed=recipe.seed + _SEED_OFFSET,
        window=recipe.train.window,
        continuous=recipe.corpus.continuous,
        steps=plan.steps,
        batch_windows=recipe.quantize.batch_windows,
        warmup_steps=recipe.quantize.warmup_steps,
        decay_share=1.0,
        clip_norm=recipe.quantize.clip_norm,
        eval_every=plan.eval_every,
        out=out,
        key=key,
        checkpoint_every_s=checkpoint_every_s,
    )


def _size_penalty(
    mixtures: Mapping[str, MixedQuantizer], sizes: SizeTable, plan: SearchPlan
) -> Callable[[], Tensor]:
    """size_weight * max(0, expected bytes / budget - 1), nats per token."""
    bytes_of = {
        name: torch.tensor([float(row[choice]) for choice in plan.choices])
        for name, row in sizes.packed.items()
    }

    def penalty() -> Tensor:
        expected = torch.stack(
            [mixture.shares() @ bytes_of[name] for name, mixture in mixtures.items()]
        )
        excess = (sizes.fixed_bytes + expected.sum()) / plan.budget_bytes - 1
        return plan.size_weight * excess.relu()

    return penalty


def _objective(
    recipe: Recipe, supernet: FloatModel, teacher: FloatModel, penalty: Callable[[], Tensor]
) -> Objective:
    """Of weights and logits in turn; the logits' has the penalty too."""
    kl_weight = recipe.quantize.kl_weight
    loss = task_loss(supernet, teacher, kl_weight=kl_weight, compiled=False)
    mixtures = mixtures_of(supernet).values()

    def objective(windows: Windows) -> Tensor:
        with parametrize.cached():  # one sample of a matrix for all of its uses
            task = loss(windows)
        trains_logits = any(mixture.trains_logits for mixture in mixtures)
        return task + penalty() if trains_logits else task

    return objective


def _optimizers(
    recipe: Recipe, plan: SearchPlan, supernet: FloatModel
) -> list[torch.optim.Optimizer]:
    logits = [mixture.logits for mixture in mixtures_of(supernet).values()]
    return [
        *optimizers_of(recipe.quantize, supernet),
        Adam(logits, lr=plan.logit_lr, betas=(0.5, 0.999)),
    ]


def _stepper(mixtures: Mapping[str, MixedQuantizer]) -> Callable[[float], None]:
    """Tells every mixture of an update."""

    def after_update(progress: float) -> None:
        for mixture in mixtures.values():
            mixture.advance(progress)

    return after_update


def _most_probable(
    mixtures: Mapping[str, MixedQuantizer], sizes: SizeTable, plan: SearchPlan
) -> Allocation:
    with torch.no_grad():
        costs = {
            name: dict(zip(plan.choices, (-mixture.logits.log_softmax(-1)).tolist(), strict=True))
            for name, mixture in mixtures.items()
        }
    return allocate_costs(costs, sizes, budget_bytes=plan.budget_bytes, metric="nas")


def _points(mixture: MixedQuantizer) -> tuple[tuple[float, ...], ...]:
    """The rows of the trajectory that updates have filled."""
    rows = mixture.trajectory.tolist()
    return tuple(tuple(row) for row in rows if sum(row) > 0)
