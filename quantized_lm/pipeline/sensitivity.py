"""Sensitivity stage: what quantizing each matrix alone costs, by format.

The costs steer the allocation of formats; text comes from the training split only.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantized_lm.errors import DataError, RecipeError
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline.batches import IGNORED, Windows
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.hessian import ProbePlan, estimate_traces
from quantized_lm.pipeline.measured import Estimate, MeasuredRows, estimate_ratio
from quantized_lm.pipeline.progress import progress_bar, track
from quantized_lm.pipeline.quantize import load_teacher
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.rounding import quantized_as, rate_of
from quantized_lm.pipeline.sizes import SizeTable, size_table
from quantized_lm.pipeline.train import make_packer
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.records import content_key, read_record, write_record
from quantized_lm.storage import tensor_bytes

CHOICES = ("1bit", "ternary", "2bit", "4bit:normal", "8bit")
CALIBRATION_TOKENS = 4096  # the relative standard error of a cost is then 2 to 4 %
_BATCH_TOKENS = 1024  # scored at a time: logits of a 10k vocabulary then take 40 MB
_SEED_OFFSET = 101  # so that calibration has windows of its own
PROBES = ProbePlan()
Rounded = Mapping[str, Mapping[str, QuantizedTensor]]


@dataclass(frozen=True)
class SensitivityReport:
    """What quantizing one matrix costs, everything else left alone.

    Attributes:
        key: names teacher, text, metric and choices.
        recipe: its name. metric: key in METRICS.
        windows, tokens: of the training split, that were measured on.
        sizes: bytes by matrix and choice, and what comes on top.
        costs: nats per token, by matrix and choice. Not forced to fall as sizes grow.
        traces: of the Hessian's diagonal blocks, nats per token; only for metric "hessian".
    """

    key: str
    recipe: str
    metric: str
    windows: int
    tokens: int
    sizes: SizeTable
    costs: dict[str, dict[str, Estimate]]
    traces: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """What a metric measures with.

    Attributes:
        model: the float teacher, frozen. batches: windows of training text.
        rounded: every matrix in every choice.
        rows: measured so far.
    """

    model: FloatModel
    batches: Sequence[Windows]
    rounded: Rounded
    rows: MeasuredRows


@dataclass(frozen=True)
class Measured:
    """What a metric found; fields as in `SensitivityReport`."""

    costs: dict[str, dict[str, Estimate]]
    traces: dict[str, Estimate] = field(default_factory=dict)


def measure_sensitivity(
    recipe: Recipe,
    *,
    metric: str,
    choices: Sequence[str],
    run: Path,
    out: Path,
    windows: int | None = None,
) -> SensitivityReport:
    """Measure, or read what was measured of the same; a killed measurement goes on.

    Args:
        metric: key in METRICS.
        choices: as in `rounding`: formats such as "2bit", or codes at a rate.
        run: folder of the train stage.
        out: folder for the report, METRIC.json.
        windows: of training text; None for as many as hold CALIBRATION_TOKENS.

    Raises:
        DataError: there is no trained teacher.
        RecipeError: no such metric.
        FormatError: no such format, or a matrix that it cannot hold.
    """
    if metric not in METRICS:
        raise RecipeError(f"metric is {metric!r}; need one of {', '.join(METRICS)}")
    batches = calibration_windows(recipe, run, windows)
    model = load_teacher(recipe, run)
    sizes = size_table(model, choices)
    key = _key(recipe, model, batches, metric, choices)
    path = out / f"{metric}.json"
    if path.exists() and (report := read_report(path)).key == key:
        return report
    rows = MeasuredRows(out / f"{metric}.partial.json", key)
    rounded = _round_all(model, choices)
    measured = METRICS[metric](Calibration(model, batches, rounded, rows))
    report = SensitivityReport(
        key=key,
        recipe=recipe.name,
        metric=metric,
        windows=sum(len(batch.inputs) for batch in batches),
        tokens=sum(batch.num_tokens for batch in batches),
        sizes=_with_rated(sizes, rounded),
        costs=measured.costs,
        traces=measured.traces,
    )
    write_record(path, report)
    rows.delete()
    return report


def read_report(path: Path) -> SensitivityReport:
    """What `measure_sensitivity` saved.

    Raises:
        DataError: no such file, or it holds something else.
    """
    remedy = "; run `secondpass sensitivity` first"
    return read_record(SensitivityReport, path, what="sensitivities", remedy=remedy)


def read_current(recipe: Recipe, metric: str, *, run: Path) -> SensitivityReport:
    """What `secondpass sensitivity` left in a run's folder, of the weights that are there now.

    Raises:
        DataError: nothing is there, or it was measured of others; no teacher is trained.
    """
    path = run / "sensitivity" / f"{metric}.json"
    report = read_report(path)
    choices = next(iter(report.costs.values()), {})
    batches = calibration_windows(recipe, run, report.windows)
    if report.key != _key(recipe, load_teacher(recipe, run), batches, metric, list(choices)):
        raise DataError(
            f"{path} was measured of other weights or text; run `secondpass sensitivity` again"
        )
    return report


def measure_joint(
    recipe: Recipe, formats: Mapping[str, str], *, run: Path, windows: int | None = None
) -> Estimate:
    """KL in nats per token with every matrix rounded at once: what the sum of costs stands for.

    Args:
        formats: choice by tensor name. run, windows: as in `measure_sensitivity`.

    Raises:
        DataError, FormatError: as in `measure_sensitivity`.
    """
    model = load_teacher(recipe, run)
    parameters = dict(model.named_parameters())
    variant = {
        name: round_to_nearest(parameters[name].numpy(), Grid.parse(choice))
        for name, choice in formats.items()
    }
    rows = [
        divergences(model, batch, [variant]) for batch in calibration_windows(recipe, run, windows)
    ]
    tokens, nats = np.concatenate(rows).T
    return estimate_ratio(nats, tokens)


def calibration_windows(recipe: Recipe, run: Path, windows: int | None) -> list[Windows]:
    """Windows of training text, in batches; the same every time. See `measure_sensitivity`."""
    corpus = open_corpus(recipe.corpus, run / "corpus")
    packer = make_packer(recipe, corpus, seed=recipe.seed + _SEED_OFFSET)
    left = windows or -(-CALIBRATION_TOKENS // recipe.train.window)
    size = max(1, _BATCH_TOKENS // recipe.train.window)
    return [packer.batch(min(size, left - start)) for start in range(0, left, size)]


@torch.no_grad()
def divergences(
    model: FloatModel, windows: Windows, variants: Iterable[Mapping[str, QuantizedTensor]]
) -> NDArray[np.float64]:
    """KL(model || model with some matrices replaced), summed over each window's tokens.

    KL = logsumexp(y) - logsumexp(x) + sum over v of P(v) (x[v] - y[v]), P = softmax(x), where x
    and y are the logits before and after.

    Returns:
        (B, 1 + variants) float64: tokens that count, then nats for each variant.
    """
    kept = torch.from_numpy(windows.targets != IGNORED)
    before = _logits(model, windows)[kept]
    normalizer = before.logsumexp(-1)
    prob = (before - normalizer[:, None]).exp()
    rows = np.nonzero(kept.numpy())[0]
    columns = [kept.sum(1).double().numpy()]
    for variant in variants:
        with _replaced(model, variant):
            after = _logits(model, windows)[kept]
        nats = after.logsumexp(-1) - normalizer + torch.einsum("nv,nv->n", prob, before - after)
        columns.append(np.bincount(rows, nats.double().numpy(), minlength=len(kept)))
    return np.stack(columns, axis=1)


def weights_hash(model: FloatModel) -> str:
    """Sha256 of every parameter's name and bytes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def _kl(calibration: Calibration) -> Measured:
    """cost[i, b] = E over text of KL(P || P with only matrix i rounded to b)  [papers.md A.5]."""
    names = [(name, choice) for name, row in calibration.rounded.items() for choice in row]
    variants = [{name: calibration.rounded[name][choice]} for name, choice in names]
    rows, windows = calibration.rows, 0
    with progress_bar() as bar:
        total = len(variants) * len(calibration.batches)
        task = bar.add_task("KL by matrix and format", total=total, status="")

        def counted() -> Iterator[Mapping[str, QuantizedTensor]]:
            for variant in variants:
                yield variant
                bar.advance(task)

        for batch in calibration.batches:
            windows += len(batch.inputs)
            if windows > len(rows):
                rows.extend(divergences(calibration.model, batch, counted()).tolist())
            else:
                bar.advance(task, len(variants))
    tokens, *nats = rows.values().T
    costs: dict[str, dict[str, Estimate]] = {name: {} for name in calibration.rounded}
    for (name, choice), values in zip(names, nats, strict=True):
        costs[name][choice] = estimate_ratio(values, tokens)
    return Measured(costs)


def _hessian(calibration: Calibration) -> Measured:
    """cost[i, b] = 1/2 Tr(H_i) / n_i * |Q_b(w_i) - w_i|^2  [papers.md A.5; HAWQ-V2, eq. 5].

    The second-order term of the loss at w + dw with H_i replaced by its mean eigenvalue times the
    identity. HAWQ-V2 leaves out the 1/2, which changes no allocation but is what makes the cost
    nats per token. It is negative where the trace is.
    """
    traces = estimate_traces(calibration.model, calibration.batches, calibration.rows, PROBES)
    parameters = dict(calibration.model.named_parameters())
    costs: dict[str, dict[str, Estimate]] = {}
    for name, row in calibration.rounded.items():
        weight = parameters[name].detach().numpy()
        mean_eigenvalue = traces[name].scaled(1 / weight.size)
        costs[name] = {
            choice: mean_eigenvalue.scaled(0.5 * _squared_error(weight, tensor))
            for choice, tensor in row.items()
        }
    return Measured(costs, traces)


Metric = Callable[[Calibration], Measured]
METRICS: Mapping[str, Metric] = MappingProxyType({"kl": _kl, "hessian": _hessian})


def _squared_error(weight: NDArray[np.float32], tensor: QuantizedTensor) -> float:
    return float(np.square(weight - tensor.dequantize(), dtype=np.float64).sum())


def _round_all(model: FloatModel, choices: Sequence[str]) -> Rounded:
    parameters = dict(model.named_parameters())
    return {
        name: {
            choice: quantized_as(choice, parameters[name].detach().numpy()) for choice in choices
        }
        for name in track(matrix_names(model), "quantize each matrix")
    }


def _with_rated(sizes: SizeTable, rounded: Rounded) -> SizeTable:
    """The sizes, with what codes at a rate really came to: levels may not take so many bits."""
    packed = {
        name: {
            choice: size if rate_of(choice) is None else tensor_bytes(rounded[name][choice])
            for choice, size in row.items()
        }
        for name, row in sizes.packed.items()
    }
    return replace(sizes, packed=packed)


def _logits(model: FloatModel, windows: Windows) -> Tensor:
    """(B, T, vocab) float32."""
    hidden = model(torch.from_numpy(windows.inputs), torch.from_numpy(windows.document))
    return model.embedding.logits(hidden)


@contextlib.contextmanager
def _replaced(model: FloatModel, variant: Mapping[str, QuantizedTensor]) -> Iterator[None]:
    """Matrices of the model are those of the variant for as long as this is entered."""
    parameters = {name: model.get_parameter(name) for name in variant}
    originals = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = torch.from_numpy(variant[name].dequantize())
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = originals[name]


def _key(
    recipe: Recipe,
    model: FloatModel,
    batches: Sequence[Windows],
    metric: str,
    choices: Sequence[str],
) -> str:
    """Everything that decides the report."""
    text = hashlib.sha256()
    for batch in batches:
        text.update(batch.inputs.tobytes())
        text.update(batch.document.tobytes())
    return content_key(
        weights_hash(model),
        recipe.corpus,
        text.hexdigest(),
        metric,
        list(choices),
        asdict(PROBES),
    )
