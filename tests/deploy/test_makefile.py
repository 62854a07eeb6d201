"""The Makefile, as far as it can be run in a moment."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.deploy.files import ROOT


def test_clean_removes_what_the_checks_leave_and_no_models(tmp_path: Path) -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    folders = [rule.rstrip("/") for rule in ignored if re.fullmatch(r"\.\w+/", rule)]
    assert ".hypothesis" in folders
    folders += [".coverage", ".mypy_cache", ".pytest_cache", ".ruff_cache", "build", "runs"]
    for name in folders:
        (tmp_path / name).mkdir()
    subprocess.run(
        ["make", "--file", ROOT / "Makefile", "clean"], cwd=tmp_path, check=True, timeout=60
    )
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
