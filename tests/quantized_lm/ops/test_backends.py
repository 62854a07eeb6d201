"""Claims about choosing a backend, and about the native module behind `cpu`."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from quantized_lm.errors import BackendError
from quantized_lm.ops import (
    BACKENDS,
    CPU_ISA_VARIABLE,
    MAX_THREADS,
    BackendOptions,
    select_backend,
    usable_cores,
)
from quantized_lm.ops import cpu as cpu_module
from quantized_lm.ops.cpu import CpuBackend, Layout, instruction_sets, measure_peaks
from quantized_lm.quant.tensor import QuantizedTensor

# What each instruction set looks 1 and 2 bits up in; all others multiply.
LOOKUPS = {"avx2": Layout.LOOKUP_BYTES, "avx512vbmi": Layout.LOOKUP}


@pytest.fixture
def _without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_module, "_import_error", "No module named '_cpu'")


def test_the_native_backend_is_preferred(cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CPU_ISA_VARIABLE, raising=False)
    assert list(BACKENDS) == ["cpu", "triton", "reference"]
    assert (select_backend().name, select_backend().variant) == ("cpu", cpu.variant)
    assert select_backend("reference").name == "reference"


def test_the_environment_forces_an_instruction_set(
    cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CPU_ISA_VARIABLE, "scalar")
    assert select_backend("cpu").variant == "scalar"
    assert select_backend("cpu", cpu_isa=cpu.variant, threads=1) == cpu
    monkeypatch.setenv(CPU_ISA_VARIABLE, "")
    assert select_backend("cpu", threads=1) == cpu


@pytest.mark.usefixtures("cpu")
def test_an_instruction_set_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CPU_ISA_VARIABLE, "avx9000")
    for name in ("auto", "cpu"):
        with pytest.raises(
            BackendError, match="'avx9000' was asked for; this CPU and build have scalar"
        ):
            select_backend(name)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendError, match="known are auto, cpu, triton, reference"):
        select_backend("tpu")


@pytest.mark.parametrize("name", ["auto", "cpu", "reference"])
def test_the_cpu_is_asked_for_alone_or_with_one_of_its_backends(name: str) -> None:
    if not BACKENDS["cpu"].is_available:
        pytest.skip("the native module is missing")
    expected = "cpu" if name == "auto" else name
    assert select_backend(name, device="cpu").name == expected
    assert select_backend(name, device="auto").name == expected


@pytest.mark.parametrize(("name", "device"), [("cpu", "cuda"), ("triton", "cpu")])
def test_a_backend_of_another_device_is_refused(name: str, device: str) -> None:
    with pytest.raises(BackendError, match=f"backend is {name}, .* and device is {device}; need"):
        select_backend(name, device=device)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(BackendError, match="'tpu'; known are auto, cpu, cuda$"):
        select_backend(device="tpu")


def test_a_gpu_that_is_asked_for_is_never_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []

    class Made(Exception):  # noqa: N818 - no error
        pass

    def create(*_: object) -> Any:
        made.append("triton")
        raise Made

    entry = replace(BACKENDS["triton"], create=create)
    monkeypatch.setattr("quantized_lm.ops.BACKENDS", {**BACKENDS, "triton": entry})
    monkeypatch.setenv(CPU_ISA_VARIABLE, "scalar")  # the other backend's
    for name in ("auto", "triton"):
        with pytest.raises(Made):
            select_backend(name, device="cuda")
    assert made == ["triton", "triton"]


@pytest.mark.usefixtures("_without_native")
def test_without_the_native_module_the_reference_serves() -> None:
    assert not BACKENDS["cpu"].is_available
    assert BACKENDS["reference"].is_available
    assert select_backend().name == "reference"
    with pytest.raises(BackendError, match="build the package"):
        select_backend("cpu")
    assert instruction_sets() == []
    assert measure_peaks(1, 1) == []


def test_a_missing_native_module_is_found_out_at_import() -> None:
    program = (
        "import sys; sys.modules['quantized_lm.ops._cpu'] = None; "
        "import quantized_lm.models; "
        "from quantized_lm.ops import select_backend; print(select_backend().name)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert answer.stdout == "reference\n"


@pytest.mark.usefixtures("_without_native")
def test_a_forced_instruction_set_is_never_ignored() -> None:
    with pytest.raises(BackendError, match="build the package"):
        select_backend("auto", cpu_isa="avx2")


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1])
def test_a_number_of_threads_that_cannot_be_is_refused(threads: int) -> None:
    with pytest.raises(BackendError, match=f"threads is {threads}; need 1 to 1024"):
        select_backend(threads=threads)


@pytest.mark.usefixtures("cpu")
def test_without_a_number_of_threads_there_is_one_on_each_usable_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    backend = select_backend("cpu")
    assert isinstance(backend, CpuBackend)
    assert backend.threads == backend.pool.threads == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert usable_cores() == 2


def native_weight(**changes: Any) -> Any:
    parts = {
        "words": torch.zeros(1, 2, 64, dtype=torch.int32),
        "scale": torch.zeros(1, 1, 64),
        "levels": torch.zeros(16, dtype=torch.int8),
        "layout": [5, 20, 20, 2, Layout.DOT, 0],
    }
    return native_module().Weight(**(parts | changes))


def native_module() -> Any:
    return importlib.import_module("quantized_lm.ops._cpu")


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"words": torch.zeros(1, 1, 64, dtype=torch.int32)}, ValueError, "need \\(1, 2, 64\\)"),
        ({"words": torch.zeros(1, 2, 64)}, TypeError, "incompatible"),
        ({"scale": torch.zeros(1, 2, 64)}, ValueError, "scale is \\(1, 2, 64\\)"),
        ({"scale": torch.zeros(1, 1, 128)[:, :, ::2]}, TypeError, "incompatible"),
        ({"levels": torch.zeros(4, dtype=torch.int8)}, ValueError, "levels are \\(4\\)"),
        ({"layout": [5, 20, 20, 3, 0, 0]}, ValueError, "bits are 3"),
        ({"layout": [5, 20, 0, 2, 0, 0]}, ValueError, "group_size are 5, 20, 0"),
        ({"layout": [5, 131073, 5, 2, 0, 0]}, ValueError, "131073"),
        ({"layout": [5, 20, 20, 4, 1, 0]}, ValueError, "layout is 1"),
        ({"layout": [5, 20, 20, 2, 0, 2]}, ValueError, "rule is 2"),
    ],
)
def test_the_native_module_takes_no_weight_that_does_not_fit(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    native_weight()
    with pytest.raises(error, match=message):
        native_weight(**changes)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"x": torch.zeros(2, 20, dtype=torch.float64)}, TypeError),
        ({"x": torch.zeros(20, 2).T}, TypeError),
        ({"y": torch.zeros(5, 2).T}, TypeError),
        ({"x": torch.zeros(2, 19)}, ValueError),
        ({"y": torch.zeros(2, 6)}, ValueError),
        ({"isa": "avx9000"}, ValueError),
        ({"pool": 10**6}, ValueError),
    ],
)
def test_the_native_module_copies_nothing_and_refuses_what_does_not_fit(
    cpu: CpuBackend, changes: dict[str, Any], error: type[Exception]
) -> None:
    arguments = {
        "x": torch.zeros(2, 20),
        "weight": native_weight(),
        "isa": "scalar",
        "pool": cpu.pool_handle,
        "y": torch.zeros(2, 5),
    }
    native_module().linear(**arguments)
    with pytest.raises(error):
        native_module().linear(**(arguments | changes))


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("layout", [Layout.LOOKUP, Layout.LOOKUP_BYTES])
def test_a_weight_laid_out_for_look_up_is_refused_by_kernels_that_read_another_layout(
    layout: Layout,
) -> None:
    weight = native_weight(layout=[5, 20, 20, 2, layout, 1])
    for isa in instruction_sets():
        if LOOKUPS.get(isa) == layout:
            native_module().time_linear(torch.zeros(1, 20), weight, isa, 1)
        else:
            with pytest.raises(ValueError, match=f"by another instruction set than {isa}$"):
                native_module().time_linear(torch.zeros(1, 20), weight, isa, 1)


@pytest.mark.parametrize(
    ("format_name", "levels", "looks_up"),
    [
        ("1bit", (-1, 1), True),
        ("1bit", (-64, 64), False),  # 128 is no int8
        ("1bit", (-127,), True),
        ("ternary", (-1, 0, 1), True),
        ("2bit", (-3, -1, 1, 3), True),
        ("2bit", (-8, -1, 2, 8), False),  # 8 is not -1 + 2 + 8
        ("4bit", tuple(range(16)), False),
        ("8bit", (1, 2), False),
    ],
)
def test_weights_are_laid_out_for_look_up_where_levels_are_sums(
    format_name: str,
    levels: tuple[int, ...],
    looks_up: bool,
) -> None:
    tensor = QuantizedTensor.from_codes(
        np.zeros((3, 5), np.uint8),
        np.ones((3, 1), np.float16),
        np.array(levels, np.int8),
        format=format_name,
    )
    for isa in instruction_sets():
        weight = CpuBackend.create(BackendOptions(isa)).prepare(tensor)
        assert weight.layout[4] == (LOOKUPS.get(isa, Layout.DOT) if looks_up else Layout.DOT)


def test_a_weight_too_wide_for_exact_sums_is_refused(cpu: CpuBackend) -> None:
    tensor = QuantizedTensor.from_codes(
        np.zeros((1, 131073), np.uint8),
        np.ones((1, 1), np.float16),
        np.array([-1, 1], np.int8),
        format="1bit",
    )
    with pytest.raises(BackendError, match="131073 columns; the cpu backend takes at most 131072"):
        cpu.prepare(tensor)


def test_a_product_can_be_timed(cpu: CpuBackend) -> None:
    tensor = QuantizedTensor.from_codes(
        np.zeros((64, 64), np.uint8),
        np.ones((64, 1), np.float16),
        np.array([-1, 1], np.int8),
        format="1bit",
    )
    assert cpu.time_linear(torch.ones(40, 64), cpu.prepare(tensor), repeats=3) > 0


@pytest.mark.parametrize(("format_name", "bits"), [("1bit", 1), ("ternary", 2), ("4bit", 4)])
def test_memory_stays_near_the_bits_of_the_format(
    cpu: CpuBackend, format_name: str, bits: int
) -> None:
    tensor = QuantizedTensor.from_codes(
        np.zeros((256, 256), np.uint8),
        np.ones((256, 1), np.float16),
        np.array([-1, 1], np.int8),
        format=format_name,
    )
    scales_and_levels = 256 * 4 + 16
    assert cpu.prepare(tensor).size_bytes == 256 * 256 * bits // 8 + scales_and_levels
