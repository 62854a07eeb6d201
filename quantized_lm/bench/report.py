"""What a run found, as plain data: the tables, the chart and the JSON are made from this alone."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quantized_lm.bench.gemms import GemmSummary, GemmTime
from quantized_lm.bench.lists import ListShape
from quantized_lm.bench.memory import Memory
from quantized_lm.bench.peaks import PeakRate
from quantized_lm.bench.rounds import Scores, SystemTimes, agreement
from quantized_lm.bench.served import Served
from quantized_lm.bench.systems import OWN, THREADS
from quantized_lm.machine import processor_name

METHOD = (
    "Wall time of a list, mean over the lists of a set; median and quartiles over rounds, in each "
    "of which every system scores every list once while all others sleep.",
    "Timed for peers: padding or merging in Python, the model, log-softmax and sums; not timed: "
    "turning ids into CTranslate2's strings, and llama.cpp's batch.",
    "Matrix products: medians on one thread, CPU time of calls from Python, wall time from C++.",
    "Timed for us: the tree, the model and the sums; for a bundled model also tokenization.",
    "Batches of padded systems and n_ubatch of llama.cpp are the fastest of a few. OpenVINO is "
    "calibrated on three of the timed lists.",
    "limit %: the time of the products alone at the int8 peak metered beside, over the whole time.",
    "Peaks that shares are of are metered with as many threads just before and just after.",
    "diff: from float32 scores, relative, the largest over hypotheses; noise: spread of that error "
    "in a list over the spread of its scores; same w.: diff from float32 arithmetic with the "
    "same dequantized weights. Weights are random: this checks the code at 8 and 4 bits and says "
    "nothing of a trained model at 1 or 2.",
)


@dataclass(frozen=True)
class SystemRow:
    """One system on one set of lists.

    Attributes:
        failure: why there are no numbers; None when there are.
        model_bytes: weights as the system stores them.
        times_float32: float32's median over this median; above 1 is faster.
        max_difference, ranking_noise: from the float32 scores, as `Agreement`.
        same_weights_difference: from float32 arithmetic with the same dequantized weights; None
            where that was not computed.
        one_thread_ms: median of the same system with one thread; None where that was not timed.
        peak_share, one_thread_peak_share: what part of the time a list's products alone would take
            at the int8 dot product's peak with as many threads, metered beside; None where that or
            the number of products is not known.
        processes_ms: median of each of some fresh processes.
    """

    name: str
    is_own: bool
    failure: str | None = None
    version: str = ""
    setting: str = ""
    model_bytes: int = 0
    median_ms: float = 0.0
    first_quartile_ms: float = 0.0
    third_quartile_ms: float = 0.0
    rounds_ms: tuple[float, ...] = ()
    times_float32: float | None = None
    max_difference: float | None = None
    ranking_noise: float | None = None
    same_weights_difference: float | None = None
    one_thread_ms: float | None = None
    peak_share: float | None = None
    one_thread_peak_share: float | None = None
    processes_ms: tuple[float, ...] = ()

    @property
    def over_one_thread(self) -> float | None:
        """How many times faster than with one thread."""
        return None if self.one_thread_ms is None else self.one_thread_ms / self.median_ms


@dataclass(frozen=True)
class ListSet:
    """One set of lists and everything that scored it.

    Attributes:
        name: key for programs. title: for readers.
        shape: mean over the lists. ratios: contexts per tree node of each.
    """

    name: str
    title: str
    shape: ListShape
    ratios: tuple[float, ...]
    rows: tuple[SystemRow, ...]


@dataclass(frozen=True)
class Report:
    """Everything one run found.

    Attributes:
        threads: of everything that does not say otherwise.
        memory: model -> what serving it costs.
        served: model -> what a request costs; where its server did not run, `remarks` say why.
        remarks: what went wrong, a line each.
    """

    machine: str
    threads: int
    method: tuple[str, ...]
    peaks: tuple[PeakRate, ...]
    gemms: tuple[GemmTime, ...]
    gemm_summaries: tuple[GemmSummary, ...]
    list_sets: tuple[ListSet, ...]
    memory: Mapping[str, Memory]
    served: Mapping[str, Served]
    remarks: tuple[str, ...]


def rows_of(
    times: Sequence[SystemTimes],
    same_weights: Mapping[str, Scores],
    operations: float | None = None,
) -> tuple[SystemRow, ...]:
    """Times and scores as rows, compared with the first float32 system that ran.

    A system that was timed with one thread too is one row.

    Args:
        same_weights: variant of ours -> its scores in float32 arithmetic.
        operations: of the products of a list, the mean; None where that is not known.
    """
    working = [one for one in times if one.failure is None]
    base = next((one for one in working if one.spec.is_float), None)
    single = {one.spec.name: one for one in working if one.spec.threads < THREADS}
    return tuple(
        _row(one, base, single.get(one.spec.name), same_weights, operations)
        for one in times
        if one.spec.threads == THREADS
    )


def _row(
    times: SystemTimes,
    base: SystemTimes | None,
    alone: SystemTimes | None,
    same_weights: Mapping[str, Scores],
    operations: float | None,
) -> SystemRow:
    spec, description = times.spec, times.description
    is_own = spec.peer == OWN
    if description is None:
        return SystemRow(spec.name, is_own, times.failure)
    median_ms = times.quantile_ms(0.5)
    against = agreement(times.scores, base.scores) if base is not None else None
    same = same_weights.get(spec.variant) if is_own else None
    return SystemRow(
        name=spec.name,
        is_own=is_own,
        version=description.version,
        setting=description.setting,
        model_bytes=description.model_bytes,
        median_ms=median_ms,
        first_quartile_ms=times.quantile_ms(0.25),
        third_quartile_ms=times.quantile_ms(0.75),
        rounds_ms=times.rounds_ms,
        times_float32=None if base is None else base.quantile_ms(0.5) / median_ms,
        max_difference=None if against is None else against.max_difference,
        ranking_noise=None if against is None else against.ranking_noise,
        same_weights_difference=(
            None if same is None else agreement(times.scores, same).max_difference
        ),
        one_thread_ms=None if alone is None else alone.quantile_ms(0.5),
        peak_share=times.share_of_peak(operations),
        one_thread_peak_share=None if alone is None else alone.share_of_peak(operations),
        processes_ms=times.processes_ms,
    )


def describe_machine() -> str:
    """Processor and versions."""
    return (
        f"{processor_name()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )
