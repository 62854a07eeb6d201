"""Kernels compiled for a GPU that is not there, and what their machine code says of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)
_INT_ALU = r"LOP3|SHF|PRMT|IADD3|IMAD|LEA|SEL|BFE|SGXT|I2I|VIADD"


@dataclass(frozen=True)
class MachineCode:
    """What a kernel was compiled to."""

    ptx: str
    sass: str
    shared_bytes: int

    def count(self, pattern: str) -> int:
        """Instructions of the PTX that match."""
        return len(re.findall(pattern, self.ptx))

    @property
    def num_spills(self) -> int:
        """Loads and stores of registers that had no room."""
        return len(re.findall(r"\b(?:LDL|STL)\b", self.sass))

    @property
    def num_register_dots(self) -> int:
        """Tensor-core instructions whose left operand is in registers."""
        return self.count(r"wgmma\.mma_async\.sync\.aligned\.\S+\s*\{[^}]*\},\s*\{")

    @property
    def alu_per_weight(self) -> float:
        """Integer instructions of a thread between the first and the last tensor-core instruction.

        Each of those multiplies 64 x 32 weights, 16 for each of 128 threads.
        """
        lines = self.sass.splitlines()
        places = [index for index, line in enumerate(lines) if "IGMMA" in line]
        inner = lines[places[0] : places[-1]]
        alu = sum(bool(re.search(rf"\b(?:{_INT_ALU})\b", line)) for line in inner)
        return alu / (16 * max(len(places) - 1, 1))


def compile_kernel(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], *, warps: int, stages: int
) -> MachineCode:
    """Compile for sm_90.

    Args:
        types: of the arguments that are no constants, as Triton writes them.
    """
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    order = {name: signature[name] for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if order[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=order, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    made = triton.compile(source, target=HOPPER, options=options)
    return MachineCode(made.asm["ptx"], _disassemble(made.asm["cubin"]), made.metadata.shared)


class Spy:
    """Stands in for a kernel, and keeps what it is launched with."""

    def __init__(self, kernel: Any, launches: dict[Any, Launch]) -> None:
        self._kernel = kernel
        self._launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(size > 0 for size in grid)

        def launch(*args: Any, **options: Any) -> None:
            names = self._kernel.arg_names
            types = {name: _type_of(value) for name, value in zip(names, args, strict=False)}
            constants = {name: value for name, value in options.items() if name in names}
            made = Launch(
                self._kernel,
                types,
                constants,
                options.get("num_warps", 4),
                options.get("num_stages", 3),
            )
            self._launches[self._kernel.__name__, str(types), str(constants)] = made

        return launch


@dataclass(frozen=True)
class Launch:
    """A kernel and all that decides what it is compiled to."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int

    def compile(self) -> MachineCode:
        """Compile it for sm_90."""
        return compile_kernel(
            self.kernel, self.types, self.constants, warps=self.warps, stages=self.stages
        )


_TYPES = {torch.float32: "fp32", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8"}


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _disassemble(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-sass", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
