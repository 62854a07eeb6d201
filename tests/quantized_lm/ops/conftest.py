"""Every backend and instruction set that this machine can run, and small weights."""

from __future__ import annotations

import pytest

from quantized_lm.ops import BACKENDS
from quantized_lm.ops.backend import Backend, BackendOptions
from quantized_lm.ops.cpu import CpuBackend, instruction_sets
from quantized_lm.ops.reference import ReferenceBackend

ISAS = ("scalar", "avx2", "avx2vnni", "avx512vnni", "avx512vbmi", "neon")


@pytest.fixture(params=["reference", "reference-int8", *(f"cpu-{isa}" for isa in ISAS)])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn; skipped, with the reason, where it cannot run."""
    if request.param == "reference-int8":
        return ReferenceBackend(activations="int8")
    name, _, isa = str(request.param).partition("-")
    reason = BACKENDS[name].why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    if isa and isa not in instruction_sets():
        pytest.skip(f"this CPU has no {isa}")
    return BACKENDS[name].create(BackendOptions(isa=isa or None, threads=2))


@pytest.fixture
def cpu() -> CpuBackend:
    """The native backend with this CPU's best instruction set and one thread."""
    reason = BACKENDS["cpu"].why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    return CpuBackend.create(BackendOptions())
