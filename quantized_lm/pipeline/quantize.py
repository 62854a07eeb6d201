"""Quantize stage: float teacher -> packed student, with quantizers in the training loop.

loss = kl_weight * KL(teacher || student) + (1 - kl_weight) * CE + the quantizers' penalties, all in
nats per token. Packed tensors are read off the student's best weights; nothing is rounded that was
not trained rounded.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.optim import AdamW

from quantized_lm.errors import DataError, RecipeError
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline.batches import IGNORED, Windows
from quantized_lm.pipeline.checkpoint import Progress, Training, load_weights, read_history
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.loop import (
    CHECKPOINT_EVERY_S,
    LoopPlan,
    Objective,
    Objectives,
    as_objective,
    run_loop,
)
from quantized_lm.pipeline.optimizer import is_matrix, make_optimizers
from quantized_lm.pipeline.precision import mixed_precision
from quantized_lm.pipeline.recipe import QuantizeRecipe, Recipe
from quantized_lm.pipeline.train import make_model, make_packer, next_token_loss, recipe_key
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers import TRAINED_QUANTIZERS
from quantized_lm.quant.quantizers.rated import OnePrice, RatedScale
from quantized_lm.quant.quantizers.trained import TrainedQuantizer
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.records import build, content_key

Value = TypeVar("Value")


@dataclass(frozen=True)
class Student:
    """A quantized model as tensors.

    Attributes:
        packed: the large matrices by parameter name. plain: every other parameter, float32.
    """

    packed: dict[str, QuantizedTensor]
    plain: dict[str, Tensor]


def quantize(
    recipe: Recipe,
    *,
    run: Path,
    out: Path,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    device: str = "cpu",
) -> Path:
    """Run the stage on what `train` left in the folder `run`; returns the student's best weights.

    Args:
        out: where the stage keeps its own files.
        checkpoint_every_s, device: as `train`.

    Raises:
        DataError: there are no float weights.
        RecipeError: a matrix matches no format pattern, a pattern stands for no matrix, a method
            or one of its settings is unknown, or training diverged.
    """
    corpus = open_corpus(recipe.corpus, run / "corpus")
    teacher = load_teacher(recipe, run).to(device)
    student = make_student(recipe, teacher).to(device)
    student.set_dropout(recipe.quantize.dropout)
    plan = recipe.quantize
    loop = LoopPlan(
        title=f"quantize {recipe.name}",
        seed=recipe.seed + 1,
        window=recipe.train.window,
        continuous=recipe.corpus.continuous,
        steps=plan.steps,
        batch_windows=plan.batch_windows,
        warmup_steps=plan.warmup_steps,
        decay_share=1.0,
        clip_norm=plan.clip_norm,
        eval_every=plan.eval_every,
        out=out,
        key=_stage_key(recipe, run),
        checkpoint_every_s=checkpoint_every_s,
        extra_gradient=plan.extra_gradient,
        measures_first=True,  # nothing that training makes worse than rounding is kept
    )
    compiled = recipe.train.compile and plan.steps > 0
    loss = task_loss(student, teacher, kl_weight=plan.kl_weight, compiled=compiled)
    quantizers = quantizers_of(student)
    run_loop(
        Training(student, optimizers_of(plan, student), Progress(), _stepper(quantizers)),
        loop,
        make_packer(recipe, corpus, seed=recipe.seed + 1),
        corpus,
        Objectives(_penalized(loss, quantizers), next_token_loss(student, compiled=compiled)),
    )
    return loop.weights


def load_teacher(recipe: Recipe, run: Path) -> FloatModel:
    """The float model of the train stage, frozen, in eval mode.

    Raises:
        DataError: it was not trained to its end yet, or by another recipe.
    """
    corpus = open_corpus(recipe.corpus, run / "corpus")
    weights = load_weights(run / "train" / "weights.pt", key=recipe_key(recipe, corpus.key))
    _require_trained(run / "train", recipe.train.steps, stage="train")
    teacher = make_model(recipe)
    teacher.load_state_dict(weights)
    return teacher.requires_grad_(requires_grad=False).eval()


def make_student(recipe: Recipe, teacher: FloatModel) -> FloatModel:
    """A copy of the teacher whose matrices pass through quantizers on their way into the model.

    Raises:
        RecipeError: as `quantize`.
    """
    plan = recipe.quantize
    if plan.method not in TRAINED_QUANTIZERS:
        known = ", ".join(TRAINED_QUANTIZERS)
        raise RecipeError(f"quantize: method is {plan.method!r}; need one of {known}")
    method = TRAINED_QUANTIZERS[plan.method]
    student = make_model(recipe)
    student.load_state_dict(teacher.state_dict())
    names = matrix_names(student)
    _require_used("formats", plan.formats, names)
    _require_used("overrides", plan.overrides, names)
    for name in names:
        module = student.get_submodule(name.removesuffix(".weight"))
        assert isinstance(module.weight, Tensor)
        fields = {**plan.settings, **(_first_match(plan.overrides, name) or {})}
        settings = build(method.settings, fields, where="quantize: settings", error=RecipeError)
        quantizer = method.make(module.weight, _grid(plan.formats, name), settings)
        parametrize.register_parametrization(module, "weight", quantizer)
    return student


def quantizers_of(student: nn.Module) -> dict[str, tuple[TrainedQuantizer, nn.Parameter]]:
    """Each packed matrix's quantizer and the float weight behind it, by parameter name."""
    found = {}
    for path, module in student.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            chain = module.get_submodule("parametrizations.weight")
            assert isinstance(chain, parametrize.ParametrizationList)
            quantizer, original = chain[0], chain.original
            assert isinstance(quantizer, TrainedQuantizer)
            assert isinstance(original, nn.Parameter)
            found[f"{path}.weight"] = quantizer, original
    return found


def load_student(recipe: Recipe, *, run: Path, out: Path) -> Student:
    """Read the packed tensors off the best weights of the quantize stage.

    Raises:
        DataError: there are none, training has not come to its end, or they are of another recipe
            or teacher.
    """
    _require_trained(out, recipe.quantize.steps, stage="quantize")
    student = make_student(recipe, load_teacher(recipe, run))
    student.load_state_dict(load_weights(out / "weights.pt", key=_stage_key(recipe, run)))
    student.eval()
    packed = {
        name: quantizer.quantize(original.detach())
        for name, (quantizer, original) in quantizers_of(student).items()
    }
    plain = {
        name: parameter.detach()
        for name, parameter in student.named_parameters()
        if ".parametrizations." not in name
    }
    return Student(packed, plain)


def task_loss(
    student: FloatModel, teacher: FloatModel, *, kl_weight: float, compiled: bool
) -> Objective:
    """kl_weight * KL(teacher || student) + (1 - kl_weight) * CE as a function of windows.

    At weight 0 the teacher is not run.
    """
    if not kl_weight:
        return next_token_loss(student, compiled=compiled)
    teach, run = (model.runner(compiled=compiled) for model in (teacher, student))
    device = student.device
    precision = mixed_precision(device)

    def loss(inputs: Tensor, document: Tensor, targets: Tensor) -> Tensor:
        kept = (targets != IGNORED).flatten()
        with precision:
            with torch.no_grad():
                expected = teacher.embedding.logits(teach(inputs, document))
            logits = student.embedding.logits(run(inputs, document))
        log_prob = logits.float().flatten(0, 1).log_softmax(-1)
        teacher_log_prob = expected.float().flatten(0, 1).log_softmax(-1)
        divergence = functional.kl_div(
            log_prob, teacher_log_prob, reduction="none", log_target=True
        ).sum(-1)
        nll = functional.nll_loss(log_prob, targets.flatten(), ignore_index=IGNORED)
        return kl_weight * (divergence * kept).sum() / kept.sum() + (1 - kl_weight) * nll

    return as_objective(loss, device=device, compiled=compiled)


def _penalized(
    loss: Objective, quantizers: Mapping[str, tuple[TrainedQuantizer, nn.Parameter]]
) -> Objective:
    """The loss with every quantizer's own part added."""

    def objective(windows: Windows) -> Tensor:
        penalties = [quantizer.penalty(weight) for quantizer, weight in quantizers.values()]
        return loss(windows) + torch.stack(penalties).sum()

    return objective


def _stepper(
    quantizers: Mapping[str, tuple[TrainedQuantizer, nn.Parameter]],
) -> Callable[[float], None]:
    """Tells every quantizer of an update, then what several of them share."""
    one_price = OnePrice(
        [
            (quantizer, weight)
            for quantizer, weight in quantizers.values()
            if isinstance(quantizer, RatedScale) and quantizer.rating.one_price
        ]
    )

    def after_update(share: float) -> None:
        for quantizer, weight in quantizers.values():
            quantizer.step(weight, share)
        one_price.step(share)

    return after_update


def optimizers_of(plan: QuantizeRecipe, student: nn.Module) -> list[torch.optim.Optimizer]:
    """Of the weights and scales that learn, at the plan's rates; of no logits of a search."""
    named = [
        (name, parameter)
        for name, parameter in student.named_parameters()
        if parameter.requires_grad and not name.endswith(".logits")
    ]
    scales = [p for n, p in named if n.endswith("log_scale")]
    weights = [(n, p) for n, p in named if not n.endswith("log_scale")]
    optimizers: list[torch.optim.Optimizer] = make_optimizers(
        [p for n, p in weights if is_matrix(n, p)],
        [p for n, p in weights if not is_matrix(n, p)],
        matrix_lr=plan.matrix_lr,
        other_lr=plan.other_lr,
        weight_decay=0.0,
    )
    if scales:
        optimizers.append(AdamW(scales, lr=plan.scale_lr, weight_decay=0.0))
    return optimizers


def _grid(formats: Mapping[str, str], name: str) -> Grid:
    choice = _first_match(formats, name)
    if choice is None:
        raise RecipeError(f"quantize: formats: no pattern matches {name!r}; add one such as '*'")
    return Grid.parse(choice)


def _require_used(field: str, by_pattern: Mapping[str, object], names: Collection[str]) -> None:
    """A pattern that is first for no matrix would silently do nothing."""
    used = {_first_pattern(by_pattern, name) for name in names}
    for pattern in by_pattern:
        if pattern not in used:
            raise RecipeError(
                f"quantize: {field}: {pattern!r} is the first match of no matrix; the first wins, "
                f"and the matrices are {', '.join(names)}"
            )


def _require_trained(folder: Path, steps: int, *, stage: str) -> None:
    history = folder / "history.jsonl"
    step = read_history(history)[-1]["step"] if history.exists() else 0
    if step != steps:
        set_steps = f", or set steps of `{stage}` to {step}" if step else ""
        raise DataError(
            f"{folder} has made {step} updates of {steps}; run `secondpass {stage}` to its "
            f"end{set_steps}"
        )


def _first_match(by_pattern: Mapping[str, Value], name: str) -> Value | None:
    """The value of the first pattern that matches."""
    pattern = _first_pattern(by_pattern, name)
    return None if pattern is None else by_pattern[pattern]


def _first_pattern(patterns: Iterable[str], name: str) -> str | None:
    return next((one for one in patterns if fnmatch.fnmatchcase(name, one)), None)


def _stage_key(recipe: Recipe, run: Path) -> str:
    """Recipe and teacher: a student of another teacher is another run."""
    key = recipe_key(recipe, open_corpus(recipe.corpus, run / "corpus").key)
    history = (run / "train" / "history.jsonl").read_text()
    # Where the first pattern that matches wins, their order counts.
    order = list(recipe.quantize.formats), list(recipe.quantize.overrides)
    return content_key(key, recipe.quantize, *filter(None, order), history)
