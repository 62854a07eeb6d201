"""The `secondpass` command, its settings and its exit codes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from pydantic import ValidationError
from typer.testing import CliRunner

from quantized_lm.artifact import DEFAULT_MODEL, bundled_path
from quantized_lm.cli import COMMANDS
from quantized_lm.ops import BACKENDS, CPU_ISA_VARIABLE
from service import cli, server
from service.settings import Settings, misspelled
from tests.conftest import TinyRun


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SECONDPASS_{name.upper()}", raising=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings of every server that was started; none really is."""
    calls: list[Settings] = []
    monkeypatch.setattr(server, "serve", calls.append)
    return calls


def test_every_command_of_the_library_is_mounted_beside_serve() -> None:
    result = CliRunner().invoke(cli.build_cli(), ["--help"])
    for name in ("serve", *(name for name, _ in COMMANDS)):
        assert f"  {name} " in result.stdout


def test_a_command_starts_without_the_server() -> None:
    program = "import sys, service.cli; sys.exit('fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_version_is_that_of_the_distribution() -> None:
    result = CliRunner().invoke(cli.build_cli(), ["--version"])
    assert result.exit_code == 0
    assert result.stdout.strip().count(".") == 2


def test_settings_are_listed_with_their_defaults() -> None:
    result = CliRunner().invoke(cli.build_cli(), ["serve", "--settings"])
    assert result.exit_code == 0
    listed = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert len(listed) == len(Settings.model_fields)
    assert {"SECONDPASS_MODELS=", "SECONDPASS_PORT=8080", "SECONDPASS_ADMIN_PORT="} <= {*listed}
    assert "\n    Seconds a client has to send one whole request;" in result.stdout


def test_options_come_before_the_environment(
    started: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "model_folder", Path)
    monkeypatch.setenv("SECONDPASS_PORT", "1")
    monkeypatch.setenv("SECONDPASS_HOST", "0.0.0.0")
    monkeypatch.setenv("SECONDPASS_MODELS", os.pathsep.join(["c", "d"]))
    monkeypatch.setenv("SECONDPASS_THREADS", "3")
    arguments = ["serve", "--model", "a", "--model", "b", "--port", "0", "--threads", "2"]
    assert CliRunner().invoke(cli.build_cli(), arguments).exit_code == 0
    assert CliRunner().invoke(cli.build_cli(), ["serve"]).exit_code == 0
    first, second = started
    assert (first.models, first.port, first.host) == ((Path("a"), Path("b")), 0, "0.0.0.0")
    assert (second.models, second.port) == ((Path("c"), Path("d")), 1)
    assert (first.threads, second.threads) == (2, 3)


def test_without_a_model_or_by_its_name_the_bundled_one_is_served(
    started: list[Settings],
) -> None:
    for arguments in (["serve"], ["serve", "--model", DEFAULT_MODEL]):
        assert CliRunner().invoke(cli.build_cli(), arguments).exit_code == 0
    assert started[0].models == started[1].models == (bundled_path(DEFAULT_MODEL),)


def test_an_unusable_setting_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDPASS_PORT", "http")
    result = CliRunner().invoke(cli.build_cli(), ["serve"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: SECONDPASS_PORT: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["MODEL_FOLDER", "API_KEYS_FILE"])
def test_an_empty_path_is_not_the_folder_that_the_server_runs_in(
    name: str, started: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"SECONDPASS_{name}", "")
    result = CliRunner().invoke(cli.build_cli(), ["serve"])
    assert (result.exit_code, started) == (2, [])
    assert result.stderr.startswith(f"error: SECONDPASS_{name}: Value error, it is empty; need a")


def test_two_settings_that_contradict_each_other_are_both_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECONDPASS_DEFAULT_DEADLINE_MS", "60000")
    result = CliRunner().invoke(cli.build_cli(), ["serve"])
    assert result.exit_code == 2
    assert "SECONDPASS_:" not in result.stderr
    assert "SECONDPASS_DEFAULT_DEADLINE_MS is 60000" in result.stderr
    assert "SECONDPASS_MAX_DEADLINE_MS, which is 30000" in result.stderr


def test_a_folder_that_is_no_artifact_is_told_before_the_server_starts(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.build_cli(), ["serve", "--model", str(tmp_path)])
    assert result.exit_code == 2
    assert "manifest.json" in result.stderr


def test_a_damaged_model_is_refused_in_one_line(tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run.artifact, tmp_path / "tiny")
    (folder / "weights.safetensors").write_bytes(b"damaged")
    result = CliRunner().invoke(cli.build_cli(), ["serve", "--model", str(folder), "--port", "0"])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "weights.safetensors has 7 bytes" in errors[0]
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not BACKENDS["cpu"].is_available, reason="the native module is missing")
@pytest.mark.parametrize(
    "arguments", [["serve", "--port", "0", "--model"], ["score", "a", "--model"]]
)
def test_an_instruction_set_this_cpu_lacks_is_refused_in_one_line(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv(CPU_ISA_VARIABLE, "avx9000")
    result = CliRunner().invoke(cli.build_cli(), [*arguments, str(tiny_run.artifact)])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "instruction set 'avx9000' was asked for; this CPU and build have scalar" in errors[0]
    assert "Traceback" not in result.stderr


def test_main_runs_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["secondpass", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "serve" in capsys.readouterr().out


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        Settings(prot=1)  # type: ignore[call-arg]


def test_settings_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: configs.append(self.config))
    server.serve(Settings(models=(Path("a"),), port=7, shutdown_s=9, log_level="debug"))
    (config,) = configs
    assert (config.port, config.log_level) == (7, "debug")
    assert config.timeout_graceful_shutdown == 9 + server.ANSWERS_S


def test_a_server_without_stderr_and_with_another_servers_variables_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: configs.append(self.config))
    monkeypatch.setattr(sys, "stderr", None)  # what Python makes of one that is closed
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    server.serve(Settings(models=(Path("a"),)))
    assert [config.workers for config in configs] == [1]


def test_a_variable_that_is_nearly_a_setting_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda _: None)
    monkeypatch.setenv("SECONDPASS_TREADS", "4")
    server.serve(Settings(models=(Path("a"),)))
    found = capsys.readouterr().err
    assert "SECONDPASS_TREADS is no setting and does nothing; is it SECONDPASS_THREADS?" in found
    assert found.count("is no setting") == 1


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("SECONDPASS_MODEL", "SECONDPASS_MODELS"),
        ("SECONDPASS_DEADLINE_MS", "SECONDPASS_MAX_DEADLINE_MS"),
        ("SECONDPASS_THREADS", None),
        (CPU_ISA_VARIABLE, None),
        ("SECONDPASS_GPU_RESIDENCY", None),
        ("SECONDPASS_API_KEY", None),
        ("SECONDPASS_SERVICE_HOST", None),  # of Kubernetes, for a service of that name
        ("SECONDPASS_PORT_8080_TCP_ADDR", None),
        ("TREADS", None),
        ("PORT", None),
    ],
)
def test_only_what_looks_like_a_setting_is_taken_for_one(
    variable: str, setting: str | None
) -> None:
    assert misspelled([variable]) == ({} if setting is None else {variable: setting})
