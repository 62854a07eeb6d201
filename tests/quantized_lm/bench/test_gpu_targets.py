"""What was promised of a GPU, judged on made-up reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantized_lm.bench.gpu_lists import LSTM, ListTime, Sameness
from quantized_lm.bench.gpu_products import CUBLAS, INT4, PLAIN_OUTPUT, GpuTime
from quantized_lm.bench.gpu_report import GpuReport, Target
from quantized_lm.bench.gpu_rivals import COMPILED, EAGER, LSTM_RIVAL
from quantized_lm.bench.gpu_served import ServiceReport, ServiceTime, StageTime
from quantized_lm.bench.gpu_targets import judge

EMPTY = GpuReport("GPU X", {}, "2026-01-01", is_rehearsal=False)
ROWS = (1, 16, 64, 128, 256, 600, 1024, 4000)
WEIGHTS = ((512, 512), (3072, 768), (4096, 4096), (16384, 512))
# Of the warm time of cuBLAS; cold everything takes twice as long, but cuBLAS three times.
SHARES = {
    CUBLAS: 1.0,
    "ours expanded": 0.5,
    "ours packed 1bit": 0.5,
    "ours packed 2bit": 0.5,
    "ours packed 4bit": 0.5,
    INT4: 4.0,
}


def time_of(what: str, system: str, size: tuple[int, ...], warm_us: float) -> GpuTime:
    cold_us = warm_us * (3 if system == CUBLAS else 2)
    return GpuTime(what, system, size, warm_us, cold_us, 1.0)


def list_of(model: str, system: str, batch: int, wall_ms: float, device_ms: float) -> ListTime:
    return ListTime(model, system, batch, 633.0, wall_ms, wall_ms, device_ms, 1e-4)


def served(rate: float, median_ms: float, slowest_ms: float, refused: int = 0) -> ServiceTime:
    return ServiceTime("load", rate, 9, refused, (StageTime("wall", median_ms, slowest_ms),))


PRODUCTS = tuple(
    time_of("product", system, (rows, *weight), 10.0 * share)
    for rows in ROWS
    for weight in WEIGHTS
    for system, share in SHARES.items()
)
OTHERS = (
    time_of("output", "ours expanded", (600, 16384, 512), 30.0),
    time_of("output", PLAIN_OUTPUT, (600, 16384, 512), 90.0),
    time_of("output", "ours expanded", (4000, 50000, 768), 500.0),
    time_of("attention", "ours", (600,), 8.0),
    time_of("attention", "ours", (4000,), 20.0),
)
LISTS = (
    list_of("s", "ours 2bit, expanded", 0, 1.0, 0.3),
    list_of("s", "ours 2bit, packed", 0, 1.1, 0.5),
    list_of("b", "ours 2bit, expanded", 0, 2.0, 0.7),
    list_of("s", "ours 2bit, expanded, a batch", 4000, 2.0, 0.5),
    list_of("b", "ours 2bit, expanded, a batch", 4000, 2.0, 1.5),
    list_of("s", EAGER, 0, 10.0, 9.0),
    list_of("b", EAGER, 0, 12.0, 9.0),
    list_of("s", COMPILED, 0, 3.0, 9.0),
    list_of(LSTM, "ours 2bit, packed", 0, 2.0, 1.0),
    list_of(LSTM, LSTM_RIVAL, 0, 2.0, 2.0),
)
SERVICE = ServiceReport(
    "b", "triton/sm_90", "expanded", 97_700_000, 2.0, 500.0, 725.0,
    (served(0.0, 2.0, 5.0), served(200.0, 4.0, 14.0), served(500.0, 9.0, 90.0)),
)  # fmt: skip
GOOD = replace(
    EMPTY,
    times=PRODUCTS + OTHERS,
    lists=LISTS,
    service=SERVICE,
    same=(Sameness("s", residencies=True, batches=True),),
)


def found(report: GpuReport) -> dict[str, Target]:
    return {target.what: target for target in judge(report)}


def test_what_was_not_measured_does_not_hold() -> None:
    targets = judge(EMPTY)
    assert len(targets) == len({target.what for target in targets}) == 27
    assert not [target for target in targets if target.holds or target.found is not None]


def test_a_good_report_keeps_every_promise() -> None:
    targets = found(GOOD)
    assert [what for what, target in targets.items() if not target.holds] == []
    numbers = {what: target.found for what, target in targets.items()}
    assert numbers["expanded over cuBLAS bf16; body, M 600"] == 2.0
    assert numbers["packed 2 bits over cuBLAS bf16; 4096 x 4096, M up to 16, cold"] == 3.0
    assert numbers["packed; body, M up to 64: share of cuBLAS's time"] == 0.5
    assert numbers["packed 4 bits over _weight_int4pack_mm; M 256"] == 8.0
    assert numbers["the same over product, log_softmax, gather"] == 3.0
    assert numbers["a 100-best list on the device; 27 M"] == 0.3
    assert numbers["a list, wall, over transformers bf16 padded, eager"] == 6.0
    assert numbers["a list, wall, over transformers bf16 padded, compiled"] == 3.0
    assert numbers["LSTM of 101 M, 2 bits over bf16, both in graphs"] == 2.0
    assert numbers["service, 200 requests/s: p99"] == 14.0
    assert numbers["service, 98 M: model load to first score"] == 2.5


def slower(system: str, size: tuple[int, ...], factor: float = 10.0) -> tuple[GpuTime, ...]:
    changed = tuple(
        replace(one, warm_us=factor * one.warm_us, cold_us=factor * one.cold_us)
        if (one.system, one.size) == (system, size)
        else one
        for one in GOOD.times
    )
    assert changed != GOOD.times
    return changed


@pytest.mark.parametrize(
    ("system", "size", "broken"),
    [
        ("ours expanded", (1024, 16384, 512), "output layer, M 1024 to 4000"),
        ("ours expanded", (600, 512, 512), "body, M 600"),
        ("ours packed 2bit", (1024, 512, 512), "M 512 or more"),
        ("ours packed 2bit", (128, 3072, 768), "expanded; M 128"),
        ("ours packed 2bit", (1, 4096, 4096), "M up to 16, cold"),
        ("ours packed 1bit", (64, 3072, 768), "share of cuBLAS's time"),
        ("ours packed 4bit", (16, 4096, 4096), "_weight_int4pack_mm; M 16"),
    ],
)
def test_the_slowest_size_decides(system: str, size: tuple[int, ...], broken: str) -> None:
    targets = found(replace(GOOD, times=slower(system, size)))
    (failed,) = (what for what, target in targets.items() if not target.holds)
    assert failed.endswith(broken)


def test_a_bit_that_differs_breaks_a_promise() -> None:
    same = (*GOOD.same, Sameness("b", residencies=False, batches=True))
    targets = found(replace(GOOD, same=same))
    assert [what for what, target in targets.items() if not target.holds] == [
        "packed and expanded: models that differ in a bit"
    ]


def test_the_services_promises_are_about_a_large_model_that_refuses_nobody() -> None:
    small = replace(GOOD, service=replace(SERVICE, parameters=10_000_000))
    refusing = replace(SERVICE, times=(served(0.0, 2.0, 5.0), served(200.0, 4.0, 14.0, 1)))
    for report, count in ((small, 4), (replace(GOOD, service=refusing), 1)):
        missing = [what for what, target in found(report).items() if target.found is None]
        assert len(missing) == count
        assert all(what.startswith("service") for what in missing)
