"""What the commands say where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantized_lm.ops import BACKENDS
from service.cli import build_cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu"], "use --backend cpu"),
        (["--tune"], "go with --gpu"),
        (["--rehearse"], "go with --gpu"),
    ],
)
def test_the_benchmark_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if BACKENDS["triton"].is_available:
        pytest.skip("there is a GPU")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = CliRunner().invoke(build_cli(), ["bench", *arguments, "--output", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
