"""The alerts: valid, tested both ways, and each explained in the runbook."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.deploy.files import DEPLOY, ROOT, RULES, alerts, load, panel_expressions, panels, run

PROMETHEUS = DEPLOY / "prometheus"


def test_promtool_accepts_configuration_and_rules() -> None:
    run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    run("promtool", "check", "rules", "--lint-fatal", RULES)


def test_promtool_finds_that_alerts_fire_and_stay_silent_as_they_should() -> None:
    run("promtool", "test", "rules", PROMETHEUS / "rules_test.yml")


def test_promtool_accepts_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    group = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(panel_expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": group}]}))
    run("promtool", "check", "rules", path)


def test_every_alert_is_tested_both_ways() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for case in load(PROMETHEUS / "rules_test.yml")["tests"]:
        for check in case["alert_rule_test"]:
            name, expected = check["alertname"], check.get("exp_alerts", [])
            assert case["name"].startswith(f"{name} {'fires' if expected else 'stays silent'} ")
            (fires if expected else silent).add(name)
    assert fires == silent == set(alerts())


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{name.lower()}"
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert all(f"**{part}.**" in section for part in ("Means", "Look", "Do"))


def test_panels_that_the_runbook_names_exist() -> None:
    titles = {panel["title"] for panel in panels()}
    text = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    named = {" ".join(name.split()) for name in re.findall(r'"([^"]+)"', text)}
    assert named
    assert named <= titles


def test_alerts_and_scrapes_name_the_same_job() -> None:
    job = load(PROMETHEUS / "prometheus.yml")["scrape_configs"][0]["job_name"]
    assert f'up{{job="{job}"}}' in alerts()["SecondpassDown"]["expr"]
    assert load(ROOT / "deploy/kubernetes/service.yaml")["metadata"]["name"] == job
