"""Quantize stage: float teacher -> packed student, by distillation with quantizers in the loop.

loss = kl_weight * KL(teacher || student) + (1 - kl_weight) * CE, both in nats per token. Packed
tensors are read off the student's final weights; nothing is rounded that was not trained rounded.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.optim import AdamW

from quantized_lm.errors import RecipeError
from quantized_lm.models.layers import matrix_names
from quantized_lm.models.tree_transformer import TreeTransformer
from quantized_lm.pipeline.batches import IGNORED, WindowPacker
from quantized_lm.pipeline.checkpoint import Progress, Training, load_weights
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
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.train import make_model, next_token_loss
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.qat import FakeQuantizer
from quantized_lm.quant.tensor import QuantizedTensor


@dataclass(frozen=True)
class Student:
    """A quantized model as tensors.

    Attributes:
        packed: the large matrices by parameter name. plain: every other parameter, float32.
    """

    packed: dict[str, QuantizedTensor]
    plain: dict[str, Tensor]


def quantize(recipe: Recipe, *, out: Path, checkpoint_every_s: float = CHECKPOINT_EVERY_S) -> Path:
    """Run the stage on what `train` left in `out`; returns the student's checkpoint.

    Raises:
        DataError: there is no finished float checkpoint.
        RecipeError: a matrix matches no format pattern.
    """
    corpus = open_corpus(out / "corpus")
    teacher = load_teacher(recipe, out)
    student = make_student(recipe, teacher)
    plan = recipe.quantize
    loop = LoopPlan(
        title=f"quantize {recipe.name}",
        window=recipe.train.window,
        steps=plan.steps,
        batch_windows=plan.batch_windows,
        warmup_steps=plan.warmup_steps,
        decay_share=1.0,
        eval_every=plan.eval_every,
        out=out / "quantize",
        key=_stage_key(recipe, out),
        checkpoint_every_s=checkpoint_every_s,
    )
    packer = WindowPacker(
        corpus.tokens("train"),
        window=loop.window,
        merge=recipe.corpus.merge,
        context=recipe.corpus.context,
        seed=recipe.seed + 1,
    )
    compiled = recipe.train.compile
    objectives = Objectives(
        distillation_loss(student, teacher, kl_weight=plan.kl_weight, compiled=compiled),
        next_token_loss(student, compiled=compiled),
    )
    run_loop(
        Training(student, _optimizers(recipe, student), Progress()),
        loop,
        packer,
        corpus,
        objectives,
    )
    return loop.out / "checkpoint.pt"


def load_teacher(recipe: Recipe, out: Path) -> TreeTransformer:
    """The float model of the train stage, frozen."""
    teacher = make_model(recipe)
    teacher.load_state_dict(load_weights(out / "train" / "checkpoint.pt"))
    return teacher.requires_grad_(requires_grad=False)


def make_student(recipe: Recipe, teacher: TreeTransformer) -> TreeTransformer:
    """A copy of the teacher whose matrices pass through quantizers on their way into the model."""
    student = make_model(recipe)
    student.load_state_dict(teacher.state_dict())
    for name in matrix_names(student):
        module = student.get_submodule(name.removesuffix(".weight"))
        grid = _grid(recipe.quantize.formats, name)
        assert isinstance(module.weight, Tensor)
        parametrize.register_parametrization(module, "weight", FakeQuantizer(module.weight, grid))
    return student


def load_student(recipe: Recipe, out: Path) -> Student:
    """Read the packed tensors off the quantize stage's checkpoint.

    Raises:
        DataError: there is no such checkpoint.
    """
    student = make_student(recipe, load_teacher(recipe, out))
    student.load_state_dict(load_weights(out / "quantize" / "checkpoint.pt"))
    parameters = dict(student.named_parameters())
    packed = {}
    for name in matrix_names(student):
        quantizer = student.get_submodule(f"{_parametrized(name)}.0")
        assert isinstance(quantizer, FakeQuantizer)
        packed[name] = quantizer.quantize(parameters[f"{_parametrized(name)}.original"].detach())
    plain = {
        name: parameter.detach()
        for name, parameter in parameters.items()
        if ".parametrizations." not in name
    }
    return Student(packed, plain)


def distillation_loss(
    student: TreeTransformer, teacher: TreeTransformer, *, kl_weight: float, compiled: bool
) -> Objective:
    """The stage's loss as a function of windows."""

    def loss(inputs: Tensor, document: Tensor, targets: Tensor) -> Tensor:
        kept = (targets != IGNORED).flatten()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                expected = teacher.embedding.logits(teacher(inputs, document))
            logits = student.embedding.logits(student(inputs, document))
        log_prob = logits.float().flatten(0, 1).log_softmax(-1)
        teacher_log_prob = expected.float().flatten(0, 1).log_softmax(-1)
        divergence = functional.kl_div(
            log_prob, teacher_log_prob, reduction="none", log_target=True
        ).sum(-1)
        nll = functional.nll_loss(log_prob, targets.flatten(), ignore_index=IGNORED)
        return kl_weight * (divergence * kept).sum() / kept.sum() + (1 - kl_weight) * nll

    return as_objective(loss, compiled=compiled)


def _optimizers(recipe: Recipe, student: nn.Module) -> list[torch.optim.Optimizer]:
    plan = recipe.quantize
    named = list(student.named_parameters())
    scales = [p for n, p in named if n.endswith("log_scale")]
    weights = [(n, p) for n, p in named if not n.endswith("log_scale")]
    return [
        *make_optimizers(
            [p for n, p in weights if is_matrix(n, p)],
            [p for n, p in weights if not is_matrix(n, p)],
            matrix_lr=plan.matrix_lr,
            other_lr=plan.other_lr,
            weight_decay=0.0,
        ),
        AdamW(scales, lr=plan.scale_lr, weight_decay=0.0),
    ]


def _parametrized(name: str) -> str:
    """Where torch keeps what a parametrized weight is made of."""
    return f"{name.removesuffix('.weight')}.parametrizations.weight"


def _grid(formats: dict[str, str], name: str) -> Grid:
    """The first pattern that matches; "4bit:normal" names a level table too."""
    for pattern, choice in formats.items():
        if fnmatch.fnmatchcase(name, pattern):
            packed_format, _, table = choice.partition(":")
            return Grid.named(packed_format, table or None)
    raise RecipeError(f"quantize: formats: no pattern matches {name!r}; add one such as '*'")


def _stage_key(recipe: Recipe, out: Path) -> str:
    """Recipe and teacher: a student of another teacher is another run."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update((out / "train" / "history.jsonl").read_bytes())
    return digest.hexdigest()
