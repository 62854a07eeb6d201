"""`secondpass rescore --engine ray`: the lines of one process, in their order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ray.conftest import LIMIT_S, RunRay

pytestmark = pytest.mark.timeout(LIMIT_S + 10)


def test_lists_come_back_as_from_one_process(run_ray: RunRay, tmp_path: Path) -> None:
    assert run_ray("corpus", tmp_path) == [0, 0, 2]
    local, by_ray = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("local", "ray")
    )
    assert [record["id"] for record in by_ray] == [f"u{index}" for index in range(150)]
    assert by_ray == local
    assert not (tmp_path / "none.jsonl").exists()
