"""Claims about choosing a backend, and about the native module behind `cpu`."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantized_lm.errors import BackendError
from quantized_lm.ops import BACKENDS, CPU_ISA_VARIABLE, select_backend
from quantized_lm.ops import cpu as cpu_module
from quantized_lm.ops.cpu import CpuBackend, instruction_sets
from quantized_lm.quant.tensor import QuantizedTensor


@pytest.fixture
def _without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_module, "_import_error", "No module named '_cpu'")


def test_the_native_backend_is_preferred(cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CPU_ISA_VARIABLE, raising=False)
    assert list(BACKENDS) == ["cpu", "reference"]
    assert select_backend() == cpu
    assert select_backend("reference").name == "reference"


def test_the_environment_forces_an_instruction_set(
    cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CPU_ISA_VARIABLE, "scalar")
    assert select_backend("cpu").variant == "scalar"
    assert select_backend("cpu", cpu_isa=cpu.variant) == cpu
    monkeypatch.setenv(CPU_ISA_VARIABLE, "")
    assert select_backend("cpu") == cpu


@pytest.mark.usefixtures("cpu")
def test_an_instruction_set_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CPU_ISA_VARIABLE, "avx9000")
    for name in ("auto", "cpu"):
        with pytest.raises(BackendError, match="'avx9000' was asked for"):
            select_backend(name)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendError, match="known are auto, cpu, reference"):
        select_backend("tpu")


@pytest.mark.usefixtures("_without_native")
def test_without_the_native_module_the_reference_serves() -> None:
    assert not BACKENDS["cpu"].is_available
    assert BACKENDS["reference"].is_available
    assert select_backend().name == "reference"
    with pytest.raises(BackendError, match="build the package"):
        select_backend("cpu")
    assert instruction_sets() == []


def test_a_missing_native_module_is_found_out_at_import() -> None:
    program = (
        "import sys; sys.modules['quantized_lm.ops._cpu'] = None; "
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


def native_arguments(**changes: Any) -> dict[str, Any]:
    arguments = {
        "x": torch.zeros(2, 20),
        "words": torch.zeros(1, 2, 64, dtype=torch.int32),
        "scale": torch.zeros(1, 1, 64),
        "levels": torch.zeros(16),
        "layout": [5, 20, 20, 2],
        "isa": "scalar",
        "y": torch.zeros(2, 5),
    }
    return arguments | changes


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"x": torch.zeros(2, 20, dtype=torch.float64)}, TypeError),
        ({"x": torch.zeros(20, 2).T}, TypeError),
        ({"y": torch.zeros(5, 2).T}, TypeError),
        ({"x": torch.zeros(2, 19)}, ValueError),
        ({"y": torch.zeros(2, 6)}, ValueError),
        ({"words": torch.zeros(1, 1, 64, dtype=torch.int32)}, ValueError),
        ({"scale": torch.zeros(1, 2, 64)}, ValueError),
        ({"levels": torch.zeros(4)}, ValueError),
        ({"layout": [5, 20, 20, 3]}, ValueError),
        ({"layout": [5, 20, 0, 2]}, ValueError),
        ({"isa": "avx9000"}, ValueError),
    ],
)
def test_the_native_module_copies_nothing_and_refuses_what_does_not_fit(
    changes: dict[str, Any], error: type[Exception]
) -> None:
    native = importlib.import_module("quantized_lm.ops._cpu")
    native.linear(**native_arguments())
    with pytest.raises(error):
        native.linear(**native_arguments(**changes))


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
    scales_and_levels = 256 * 4 + 16 * 4
    assert cpu.prepare(tensor).size_bytes == 256 * 256 * bits // 8 + scales_and_levels


@pytest.mark.usefixtures("cpu")
def test_code_for_newer_cpus_leaks_no_shared_symbol() -> None:
    # A weak symbol (an inline function, a template) emitted by the AVX-512 copy of the kernels may
    # be the one the linker keeps for everybody, which is an illegal instruction on an older CPU.
    objects = sorted(Path(__file__).parents[3].glob("build/**/kernels_*.dir/gemm.cpp.o"))
    if not objects:
        pytest.skip("the object files of the build are not kept in build/")
    for path in objects:
        listing = subprocess.run(
            ["nm", "--defined-only", "-C", str(path)], check=True, capture_output=True, text=True
        ).stdout
        kinds = {line.split(maxsplit=2)[1] for line in listing.splitlines()}
        assert not kinds & set("WVu"), f"{path.parent.name}: {listing}"
