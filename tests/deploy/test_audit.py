"""deploy/audit.py: silence of the advisory service is not taken for good news."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, script

CLEAN = {"name": "a", "version": "1", "vulns": []}
FAULTY = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}, {"id": "CVE-2"}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found"}


def audit(folder: Path, *packages: Any, output: str | None = None) -> tuple[int, list[str]]:
    """Exit code and lines of an audit whose tool finds this."""
    found = json.dumps({"dependencies": packages}) if output is None else output
    tool = folder / "pip-audit"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{found}\nEND\n", encoding="utf-8")
    tool.chmod(0o755)
    args = [sys.executable, str(DEPLOY / "audit.py"), str(tool)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines()


def test_what_is_vulnerable_is_named_and_fails(tmp_path: Path) -> None:
    assert audit(tmp_path, CLEAN, FAULTY, UNKNOWN) == (
        1,
        ["b 2: CVE-1, CVE-2", "1 vulnerable of 2 known, 3 installed"],
    )


def test_what_was_looked_up_is_counted(tmp_path: Path) -> None:
    assert audit(tmp_path, CLEAN, UNKNOWN) == (0, ["0 vulnerable of 1 known, 2 installed"])


@pytest.mark.parametrize("output", [None, "", "[Errno -2] Name or service not known"])
def test_a_service_that_knows_nothing_or_is_away_is_a_check_that_was_skipped(
    tmp_path: Path, output: str | None
) -> None:
    code, lines = audit(tmp_path, UNKNOWN, UNKNOWN, output=output)
    assert code == 0
    assert lines[-1].startswith("skipped: ")


def test_a_service_that_never_answers_is_a_check_that_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    tool.chmod(0o755)
    module = script(DEPLOY / "audit.py")
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(sys, "argv", ["audit.py", str(tool)])
    assert module.main() == 0
    assert capsys.readouterr().out == "skipped: pip-audit was not done after 0 s\n"
