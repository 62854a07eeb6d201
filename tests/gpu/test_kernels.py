"""Kernels of the GPU, in an environment with Triton: interpreted, compiled, run on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FOLDER = ROOT / ".venv" / "gpu"  # where .ci/run makes it


@pytest.fixture(scope="module")
def python() -> str:
    """The Python that has Triton."""
    named = os.environ.get("SECONDPASS_GPU_PYTHON")
    if named is not None:
        return named
    if importlib.util.find_spec("triton") is not None:
        return sys.executable
    if not (_FOLDER / "ready").exists():
        pytest.skip("no environment with Triton: make it with tests/gpu_env/make.sh .venv/gpu")
    return str(_FOLDER / "bin" / "python")


@pytest.mark.parametrize(
    ("module", "interprets"),
    [("interpreted", True), ("interpreted_models", True), ("compiled", False), ("on_gpu", False)],
)
def test_in_the_environment_with_triton(python: str, module: str, *, interprets: bool) -> None:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": str(int(interprets))}
    file = f"tests/gpu_env/{module}.py"
    options = ["-q", "-p", "no:cacheprovider", "--no-header"]
    done = subprocess.run(
        [python, "-m", "pytest", file, *options],
        check=False,
        cwd=ROOT,
        env=settings,
        text=True,
        capture_output=True,
        timeout=230,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    if "no CUDA device" in done.stdout:
        pytest.skip("torch finds no CUDA device")
