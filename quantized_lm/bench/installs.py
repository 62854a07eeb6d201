"""The environment the peers run in: a venv of their own, so that nothing of theirs touches ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

_INSTALL_TIMEOUT_S = 3600.0
# llama.cpp is compiled; with these it uses every instruction of this machine.
_BUILD_SETTINGS = {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}


@dataclass(frozen=True)
class Environment:
    """A venv and what is known to be installed in it.

    Attributes:
        folder: the venv; made when something is first installed.
    """

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return (self.folder / "bin" / "python").absolute()

    def install(self, requirements: Sequence[str]) -> str | None:
        """Install unless that was done before.

        Returns:
            Why it failed, in one line; None when all is there.
        """
        done = self.folder / "installed.txt"
        wanted = " ".join(requirements)
        if done.exists() and wanted in done.read_text(encoding="utf-8").splitlines():
            return None
        if not self.python.exists():
            reason = self._run([sys.executable, "-m", "venv", str(self.folder)])
            if reason is not None:
                return reason
        reason = self._run([str(self.python), "-m", "pip", "install", *requirements])
        if reason is None:
            with done.open("a", encoding="utf-8") as handle:
                handle.write(wanted + "\n")
        return reason

    def _run(self, command: Sequence[str]) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 - our own command line
                command,
                env={**outside_environment(), **_BUILD_SETTINGS},
                capture_output=True,
                check=False,
                text=True,
                timeout=_INSTALL_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return f"not installed within {_INSTALL_TIMEOUT_S:.0f} s"
        if done.returncode == 0:
            return None
        return last_line(done.stdout + done.stderr, "ERROR")


def outside_environment() -> dict[str, str]:
    """This process's environment variables without the one that shows our packages to the peers."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def torch_requirement() -> str:
    """The torch that we run ourselves, so that both sides have the same one."""
    return f"torch=={torch.__version__.split('+')[0]}"


def last_line(text: str, marker: str = "") -> str:
    """The last line that holds a marker, else the last one, else a remark that there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if marker in line]
    return (marked or lines or ["no message"])[-1]
