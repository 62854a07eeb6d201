"""Kernels of the GPU, in an environment with Triton: interpreted, compiled, run on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
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


# Which of tests/gpu_env, and whether in the interpreter.
MODULES = {
    "interpreted": True,
    "interpreted_models": True,
    "rehearsed": True,
    "compiled": False,
    "on_gpu": False,
}
_OPTIONS = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=short"]


@pytest.fixture(scope="module")
def started(python: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All of them at once: most of their time they use one core."""
    running = {}
    for module, interprets in MODULES.items():
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": str(int(interprets))}
        command = [python, "-m", "pytest", f"tests/gpu_env/{module}.py", *_OPTIONS]
        running[module] = subprocess.Popen(
            command,
            cwd=ROOT,
            env=settings,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("module", MODULES)
def test_in_the_environment_with_triton(
    started: dict[str, subprocess.Popen[str]], module: str
) -> None:
    said, _ = started[module].communicate(timeout=230)
    assert started[module].returncode == 0, said[-6000:]
    if "no CUDA device" in said:
        pytest.skip("no CUDA device to test on")
