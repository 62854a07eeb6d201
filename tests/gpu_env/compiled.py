"""In the environment with Triton's compiler: what every kernel becomes on Hopper.

Run by tests/gpu with TRITON_INTERPRET unset: `pytest tests/gpu_env/compiled.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from quantized_lm.models import ARCHITECTURES
from quantized_lm.models.device_engine import Rows
from quantized_lm.models.device_lstm import DeviceLstm
from quantized_lm.models.device_transformer import DeviceTransformer
from quantized_lm.models.layers import PackedEmbedding, PackedLinear
from quantized_lm.ops.device_args import Codes, Epilogue
from quantized_lm.ops.device_layout import DeviceWeight, lay_out
from quantized_lm.ops.gpu import GpuBackend
from quantized_lm.ops.tiles import TileTable
from quantized_lm.ops.triton import launch as launch_module
from quantized_lm.quant.formats import FORMATS
from quantized_lm.quant.tensor import QuantizedTensor
from tests.gpu_env.machine_code import Launch, MachineCode, Spy

# What lets two programs share a multiprocessor of 228 KB.
MOST_SHARED = 113 * 1024
MOST_ALU = 1.7  # integer instructions for a weight, decoding and the rest of the loop
CPU = torch.device("cpu")


def weight_of(format_name: str, N: int, K: int) -> QuantizedTensor:
    row = FORMATS[format_name]
    codes = np.zeros((N, K), np.uint8)
    levels = np.array(row.levels, np.int8)
    return QuantizedTensor.from_codes(
        codes, np.ones((N, 1), np.float16), levels, format=format_name
    )


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Launch]:
    """What is launched, by what it is compiled for."""
    found: dict[Any, Launch] = {}
    for name in list(vars(launch_module)):
        if name.endswith("_kernel"):
            monkeypatch.setattr(launch_module, name, Spy(getattr(launch_module, name), found))
    return found


def kernels(*, is_plain: bool = False) -> launch_module.Kernels:
    return launch_module.Kernels(TileTable({}), is_plain=is_plain)


def matmul_code(
    launches: dict[Any, Launch], weight: DeviceWeight, num: int, *, is_plain: bool = False
) -> MachineCode:
    K, N = weight.layout.num_columns, weight.layout.num_rows
    codes = Codes(torch.zeros((1, K), dtype=torch.int8), torch.zeros(1))
    y = torch.zeros((1, N))
    launches.clear()
    kernels(is_plain=is_plain).matmul(weight, codes, num, y, Epilogue(None, "gelu_tanh"))
    (launch,) = launches.values()
    return launch.compile()


@pytest.mark.parametrize("num", [16, 4096])
@pytest.mark.parametrize("format_name", ["1bit", "2bit", "4bit", "8bit"])
def test_packed_products_run_on_int8_tensor_cores_from_registers(
    launches: dict[Any, Launch], format_name: str, num: int
) -> None:
    weight = lay_out(weight_of(format_name, 2048, 1024), expands=False)
    code = matmul_code(launches, weight, num)
    dots = code.count(r"wgmma\.mma_async[^;]*s32\.s8\.s8")
    assert dots > 0
    assert code.num_register_dots == (0 if weight.layout.bits == 8 else dots)
    assert code.count(r"mma\.sync") == code.num_spills == 0
    assert code.shared_bytes <= MOST_SHARED
    assert code.count(r"cp\.async\.c[ga]") > 0
    assert weight.layout.bits == 8 or code.alu_per_weight <= MOST_ALU


def test_without_assembly_decoding_is_slow(launches: dict[Any, Launch]) -> None:
    weight = lay_out(weight_of("2bit", 2048, 1024), expands=False)
    code = matmul_code(launches, weight, 600, is_plain=True)
    assert code.alu_per_weight > MOST_ALU


SIZES: dict[str, Any] = {"vocab_size": 1024, "num_layers": 1, "model_dim": 512, "max_tokens": 64}
OWN = {
    "transformer": {"num_heads": 8, "ffn_dim": 2048},
    "gpt2": {"num_heads": 8, "ffn_dim": 2048},
    "lstm": {},
}


@pytest.mark.parametrize("architecture", OWN)
def test_every_kernel_of_a_model_compiles_without_spills(
    launches: dict[Any, Launch], architecture: str
) -> None:
    config_class, model_class = ARCHITECTURES[architecture]
    model = model_class(config_class(**SIZES, **OWN[architecture])).requires_grad_(
        requires_grad=False
    )
    backend = GpuBackend("sm_90", CPU, "packed", kernels(), (16, 64))
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            weight = backend.prepare(weight_of("2bit", *module.weight.shape))
            model.set_submodule(path, PackedLinear(weight, module.bias))
        elif path == "embedding":
            weight = backend.prepare(weight_of("4bit", 1024, 512))
            model.set_submodule(path, PackedEmbedding(weight))
    engines: dict[str, Any] = {"lstm": DeviceLstm}
    engine = engines.get(architecture, DeviceTransformer)(model.plan(), backend)
    engine.resize(128)
    ids = np.arange(5, dtype=np.int32)
    engine.run(Rows(ids, ids, ids + 2, ids + 1), ids[:2], ids[:2])
    assert len(launches) >= 7
    for launch in launches.values():
        code = launch.compile()
        assert code.num_spills == 0, launch.kernel.__name__
        assert code.shared_bytes <= MOST_SHARED, launch.kernel.__name__
