"""BACKENDS: everything that can multiply by a packed weight, the preferred one first.

Importing this package touches no environment variable, builds no backend and needs no torch;
`select_backend` does, torch for the backends that compute with it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import Backend, BackendOptions, PackedWeight
from quantized_lm.ops.cpu import CpuBackend
from quantized_lm.ops.cpu import why_unavailable as why_cpu_unavailable

__all__ = [
    "AUTO",
    "BACKENDS",
    "DEVICES",
    "Backend",
    "BackendEntry",
    "BackendOptions",
    "PackedWeight",
    "select_backend",
]

AUTO = "auto"  # of a backend or a device: whichever works here
CPU_ISA_VARIABLE = "SECONDPASS_CPU_ISA"
GPU_RESIDENCY_VARIABLE = "SECONDPASS_GPU_RESIDENCY"
MAX_THREADS = 1024
TORCH_REMEDY = "pip install 'secondpass[torch]'"


@dataclass(frozen=True)
class BackendEntry:
    """One row of BACKENDS.

    Attributes:
        name: key in BACKENDS.
        device: kind of device it computes on, one of DEVICES.
        create: make the backend.
        why_unavailable: the reason it cannot be used on this machine, None when it can.
    """

    name: str
    device: str
    create: Callable[[BackendOptions], Backend]
    why_unavailable: Callable[[], str | None]

    @property
    def is_available(self) -> bool:
        """Whether `create` will work here."""
        return self.why_unavailable() is None


def _gpu_backend(options: BackendOptions) -> Backend:
    _require_torch()
    from quantized_lm.ops.gpu import GpuBackend  # noqa: PLC0415 - torch's

    return GpuBackend.create(options)


def _why_no_gpu() -> str | None:
    if reason := _why_no_torch():
        return reason
    from quantized_lm.ops.gpu import why_unavailable  # noqa: PLC0415 - torch's

    return why_unavailable()


def _reference_backend(_: BackendOptions) -> Backend:
    _require_torch()
    from quantized_lm.ops.reference import ReferenceBackend  # noqa: PLC0415 - torch's

    return ReferenceBackend()


def _require_torch() -> None:
    if reason := _why_no_torch():
        raise BackendError(reason)


def _why_no_torch() -> str | None:
    """Why torch cannot be used; None when it can."""
    if importlib.util.find_spec("torch") is None:
        return f"torch is not installed; {TORCH_REMEDY}"
    return None


BACKENDS: Mapping[str, BackendEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            BackendEntry("cpu", "cpu", CpuBackend.create, why_cpu_unavailable),
            # Behind the CPU's until it was measured on a GPU: it or its device has to be named.
            BackendEntry("triton", "cuda", _gpu_backend, _why_no_gpu),
            BackendEntry("reference", "cpu", _reference_backend, _why_no_torch),
        )
    }
)
DEVICES = tuple(dict.fromkeys(entry.device for entry in BACKENDS.values()))


def select_backend(
    name: str = AUTO,
    *,
    device: str = AUTO,
    cpu_isa: str | None = None,
    threads: int | None = None,
    pins: bool = False,
) -> Backend:
    """Create a backend: the named one, or for "auto" the first of the device that works here.

    This is the one place that reads SECONDPASS_CPU_ISA, and only when `cpu_isa` is None, and
    SECONDPASS_GPU_RESIDENCY: auto, packed or expanded, for the triton backend.

    Args:
        name: key in BACKENDS, or "auto".
        device: one of DEVICES, or "auto" for any.
        cpu_isa: instruction set of the cpu backend (`cpu.instruction_sets` lists them); None for
            the environment variable's choice, and without one for the best this CPU has.
        threads: of the cpu backend; None for one on each core that this process may use. Those
            of torch, with which the reference computes, are torch's own matter.
        pins: whether each of these threads stays on one core.

    Raises:
        BackendError: unknown name or device, a backend of another device, unusable on this
            machine, or no such number of threads.
    """
    isa = cpu_isa if cpu_isa is not None else os.environ.get(CPU_ISA_VARIABLE) or None
    entry = _choose(name, device, names_isa=isa is not None)
    count = usable_cores() if threads is None else threads
    if not 1 <= count <= MAX_THREADS:
        raise BackendError(f"threads is {count}; need 1 to {MAX_THREADS}")
    residency = os.environ.get(GPU_RESIDENCY_VARIABLE) or "auto"
    return entry.create(BackendOptions(isa, count, pins, residency))


def _choose(name: str, device: str, *, names_isa: bool) -> BackendEntry:
    for got, known, noun in ((name, tuple(BACKENDS), "backend"), (device, DEVICES, "device")):
        if got not in (AUTO, *known):
            raise BackendError(f"no {noun} is named {got!r}; known are {', '.join((AUTO, *known))}")
    fitting = [entry for entry in BACKENDS.values() if device in (AUTO, entry.device)]
    if name != AUTO:
        if BACKENDS[name] not in fitting:
            raise BackendError(
                f"backend is {name}, which computes on {BACKENDS[name].device}, and device is "
                f"{device}; need two that agree, or one of them"
            )
        return BACKENDS[name]
    # Who asks for an instruction set must not get the reference instead; and who asks for a device
    # is told why it cannot be had.
    available = (entry for entry in fitting if entry.is_available and not names_isa)
    return next(available, fitting[0])


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return min(len(os.sched_getaffinity(0)), MAX_THREADS)
    return os.cpu_count() or 1
