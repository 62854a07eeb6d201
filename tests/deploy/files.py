"""Where the files of deploy/ are, what is in them, and the tools that check them."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from service.request_bodies import LARGEST_AT_ONCE
from service.settings import MIB, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
MANIFESTS = tuple(
    DEPLOY / "kubernetes" / f"{name}.yaml"
    for name in ("deployment", "service", "autoscaler", "disruption", "network", "podmonitor")
)
NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
QUOTED = re.compile(r'"[^"]*"')


def load(path: Path) -> Any:
    """The one YAML document of a file; JSON is YAML too."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def script(path: Path) -> ModuleType:
    """A script, which is part of no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alerts() -> dict[str, dict[str, Any]]:
    """Alert rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> dict[str, str]:
    """Recorded expressions by name."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    return [rule for group in load(RULES)["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The dashboard of Grafana."""
    board: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))
    return board


def panels() -> list[dict[str, Any]]:
    """Its panels that draw something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_expressions() -> list[str]:
    """PromQL of every panel, with what Grafana would fill in."""
    return [
        target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$job", ".*")
        .replace("$model", ".*")
        for panel in panels()
        for target in panel["targets"]
    ]


def metrics_in(promql: str) -> set[str]:
    """Names of our metrics and of recorded ones in an expression."""
    names = NAME.findall(QUOTED.sub('""', promql))
    return {name for name in names if name.startswith("rescore_") or ":" in name}


def expressions() -> Iterator[tuple[str, str]]:
    """Where, and which PromQL: rules, dashboard, its variables and the adapter."""
    for rule in rules():
        yield RULES.name, rule["expr"]
    for expression in panel_expressions():
        yield "dashboard.json", expression
    for variable in dashboard()["templating"]["list"]:
        yield "dashboard.json", variable["definition"]
    adapter = load(DEPLOY / "kubernetes" / "prometheus-adapter-values.yaml")
    for rule in adapter["rules"]["custom"]:
        yield "prometheus-adapter-values.yaml", rule["seriesQuery"]


def memory_bytes(settings: Settings) -> int:
    """What a process takes at most: itself, bodies that are held, and the two that are read."""
    largest = max(settings.max_body_bytes, settings.max_lattice_body_bytes)
    return 160 * MIB + LARGEST_AT_ONCE * largest + 2 * 30 * settings.max_lattice_body_bytes


def run(tool: str, *args: str | Path, cwd: Path = ROOT, given: str = "") -> str:
    """What a tool prints; skips where it is absent, fails where it finds a fault."""
    beside_python = Path(sys.executable).parent
    made_by_check = beside_python.parent / "deploy" / "bin"
    found = shutil.which(tool) or shutil.which(tool, path=f"{beside_python}:{made_by_check}")
    if found is None:
        pytest.skip(f"{tool} is not installed; deploy/check.sh installs it where it can")
    done = subprocess.run(
        [found, *map(str, args)], cwd=cwd, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
