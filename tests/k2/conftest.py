"""Real k2, in an environment of its own: Python 3.10 and torch 1.13.1, which k2 was built for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_FOLDER = ROOT / ".venv" / "k2"  # where .ci/run makes it
RunK2 = Callable[..., Any]


@pytest.fixture(scope="session")
def run_k2() -> RunK2:
    """Runs a module of tests/k2_env with arguments, and gives the JSON of its last line."""
    python = os.environ.get("SECONDPASS_K2_PYTHON")
    if python is None:
        if not (_FOLDER / "ready").exists():
            pytest.skip("no environment with k2: make it with tests/k2_env/make.sh .venv/k2")
        python = str(_FOLDER / "bin" / "python")

    def run(module: str, *arguments: object) -> Any:
        command = [python, "-m", f"tests.k2_env.{module}", *map(str, arguments)]
        settings = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=settings,
            text=True,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.split("\n")[-2]) if done.stdout else None

    return run


@pytest.fixture(scope="session")
def saved(run_k2: RunK2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of lattices as k2's users save them; see tests/k2_env/files.py."""
    folder = tmp_path_factory.mktemp("k2")
    run_k2("files", "write", folder)
    return folder


@pytest.fixture(scope="session")
def found(run_k2: RunK2) -> dict[str, Any]:
    """What k2 finds in its own process; see tests/k2_env/memory.py."""
    results: dict[str, Any] = run_k2("memory")
    return results
