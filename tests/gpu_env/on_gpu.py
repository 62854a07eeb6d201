"""What only a GPU can show: assembly against plain decoding, races, graphs, repeats.

Run by tests/gpu: `pytest tests/gpu_env/on_gpu.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from quantized_lm.bench.gpu import rehearsal, run
from quantized_lm.bench.gpu_checks import CheckOptions, check, random_codes, random_weight
from quantized_lm.models.device import DeviceModel
from quantized_lm.ops import select_backend
from quantized_lm.ops.backend import BackendOptions
from quantized_lm.ops.device_args import Codes
from quantized_lm.ops.device_layout import lay_out
from quantized_lm.ops.gpu import GpuBackend, why_unavailable
from quantized_lm.ops.tiles import TileTable
from quantized_lm.ops.triton.launch import Kernels
from quantized_lm.quant.formats import FORMATS
from tests.gpu_env.interpreted_models import OWN, packed, small_model, trees
from tests.quantized_lm.models.test_native import score

pytestmark = pytest.mark.skipif(
    why_unavailable() is not None, reason=f"no CUDA device to test on: {why_unavailable()}"
)


def gpu() -> GpuBackend:
    return GpuBackend.create(BackendOptions(residency="packed"))


def test_every_kernel_computes_its_definition_a_hundred_times() -> None:
    assert check(CheckOptions(shapes=((1536, 512), (999, 515))), gpu()) > 1000


@pytest.mark.parametrize("name", FORMATS)
def test_assembly_decodes_as_plain_triton_does(name: str) -> None:
    backend = gpu()
    weight = lay_out(random_weight(name, 999, 1024), expands=False).to(backend.device)
    codes = random_codes(65, 1024, backend.device)
    both = []
    for is_plain in (False, True):
        y = torch.zeros(65, 999, device=backend.device)
        Kernels(TileTable({}), is_plain=is_plain).matmul(weight, codes, 65, y)
        both.append(y)
    assert torch.equal(*both)


@pytest.mark.parametrize("architecture", OWN)
def test_scores_are_those_of_the_cpu_engine_alone_and_among_strangers(architecture: str) -> None:
    model, lists = small_model(architecture), trees()
    expected = score(packed(model, select_backend("cpu")), lists)
    device = packed(model, gpu(), (1, 16, 64, 256))
    together = score(device, lists)
    for _ in range(100):
        for ours, again in zip(together, score(device, lists), strict=True):
            assert np.array_equal(ours, again)
    for tree, ours, theirs in zip(lists, together, expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-3
        assert np.array_equal(score(device, [tree])[0], ours)


def test_passes_are_graphs() -> None:
    device = packed(small_model("gpt2"), gpu(), (1, 16))
    assert isinstance(device, DeviceModel)
    assert set(device._engine._nodes.replays) == {1, 16}  # type: ignore[attr-defined]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no CUDA device tool compute-sanitizer on the path")
    program = (
        "import torch; from tests.gpu_env import on_gpu as t; b = t.gpu();\n"
        "for n in t.FORMATS:\n"
        "    w = t.lay_out(t.random_weight(n, 70, 515), expands=False).to(b.device)\n"
        "    x = t.random_codes(3, 515, b.device); y = torch.zeros(3, 70, device=b.device)\n"
        "    b.kernels.matmul(w, x, 3, y); torch.cuda.synchronize()\n"
        "for a in t.OWN:\n"
        "    t.score(t.packed(t.small_model(a), b, (1, 16)), t.trees())\n"
    )
    command = [sanitizer, "--tool", tool, "--error-exitcode", "3", sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_benchmark_runs_here(tmp_path: Path) -> None:
    report = run(rehearsal(tmp_path), lambda items, _: items)
    assert not report.is_rehearsal
    assert not [one for one in (*report.peaks, *report.times) if one.failure is not None]
    assert report.service is not None
    assert report.service.backend.startswith("triton/sm_")


def test_rows_of_a_store_are_found_by_their_slot() -> None:
    backend = gpu()
    weight = lay_out(random_weight("2bit", 128, 512), expands=False).to(backend.device)
    codes = random_codes(9, 512, backend.device)
    chosen = torch.tensor([7, 2, 2, 0], dtype=torch.int32, device=backend.device)
    every, some = (torch.zeros(n, 128, device=backend.device) for n in (9, 4))
    backend.kernels.matmul(weight, codes, 9, every)
    backend.kernels.matmul(weight, Codes(codes.codes, codes.step, chosen), 4, some)
    assert torch.equal(some, every[chosen.long()])
