"""BACKENDS: everything that can multiply by a packed weight, the preferred one first.

Importing this package touches no environment variable and builds no backend; `select_backend` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quantized_lm.errors import BackendError
from quantized_lm.ops.backend import Backend, PackedWeight
from quantized_lm.ops.cpu import CpuBackend
from quantized_lm.ops.cpu import why_unavailable as why_cpu_unavailable
from quantized_lm.ops.embedding import embed
from quantized_lm.ops.linear import linear
from quantized_lm.ops.output import gather_log_prob
from quantized_lm.ops.reference import ReferenceBackend

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendEntry",
    "PackedWeight",
    "embed",
    "gather_log_prob",
    "linear",
    "select_backend",
]

CPU_ISA_VARIABLE = "SECONDPASS_CPU_ISA"


@dataclass(frozen=True)
class BackendEntry:
    """One row of BACKENDS.

    Attributes:
        name: key in BACKENDS.
        create: make the backend; the argument is the instruction set asked for, None for the best.
        why_unavailable: the reason it cannot be used on this machine, None when it can.
    """

    name: str
    create: Callable[[str | None], Backend]
    why_unavailable: Callable[[], str | None]

    @property
    def is_available(self) -> bool:
        """Whether `create` will work here."""
        return self.why_unavailable() is None


BACKENDS: Mapping[str, BackendEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            BackendEntry("cpu", CpuBackend.create, why_cpu_unavailable),
            BackendEntry("reference", lambda _: ReferenceBackend(), lambda: None),
        )
    }
)


def select_backend(name: str = "auto", *, cpu_isa: str | None = None) -> Backend:
    """Create a backend: the named one, or for "auto" the first that works here.

    This is the one place that reads SECONDPASS_CPU_ISA, and only when `cpu_isa` is None.

    Args:
        name: key in BACKENDS, or "auto".
        cpu_isa: "scalar", "avx2" or "avx512" for the cpu backend; None for the environment
            variable's choice, and without one for the best this CPU has.

    Raises:
        BackendError: unknown name, or unusable on this machine.
    """
    isa = cpu_isa if cpu_isa is not None else os.environ.get(CPU_ISA_VARIABLE) or None
    if name == "auto":
        # Who asks for an instruction set must not get the reference instead.
        available = (entry.name for entry in BACKENDS.values() if entry.is_available)
        name = next(available) if isa is None else "cpu"
    if name not in BACKENDS:
        raise BackendError(f"no backend is named {name!r}; known are auto, {', '.join(BACKENDS)}")
    return BACKENDS[name].create(isa)
