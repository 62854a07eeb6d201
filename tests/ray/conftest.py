"""Real Ray, in an environment of its own: 1.7 GB that nothing else needs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ray_env.telling import MARK

ROOT = Path(__file__).parents[2]
LIMIT_S = 600
# Ray reads these when it is imported. A busy machine starts processes slowly, and nice ones never.
SETTINGS = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
RunRay = Callable[..., Any]


@pytest.fixture(scope="session")
def run_ray() -> RunRay:
    """Runs a module of tests/ray_env with arguments, and gives the JSON that it tells."""
    python = os.environ.get("SECONDPASS_RAY_PYTHON")
    if python is None:
        pytest.skip("no environment with Ray: make ray-check makes one and runs these tests")

    def run(module: str, *arguments: object) -> Any:
        command = [python, "-m", f"tests.ray_env.{module}", *map(str, arguments)]
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env={**os.environ, **SETTINGS},
            text=True,
            capture_output=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        (found,) = (line for line in done.stdout.splitlines() if line.startswith(MARK))
        return json.loads(found.removeprefix(MARK))

    return run
