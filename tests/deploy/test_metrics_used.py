"""No rule, panel or autoscaler asks for a metric that the service does not export."""

from __future__ import annotations

import re

import anyio
import pytest

from tests.deploy.files import DEPLOY, expressions, load, metrics_in, recorded
from tests.service.serving import running

LABEL_VALUES = re.compile(r'\b(stage|outcome|reason)(?:=|!=|=~|!~)"([^"]*)"')
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def scraped() -> str:
    """What /metrics says of an app that nobody has asked for anything yet."""

    async def scrape() -> str:
        async with running() as (client, _):
            return (await client.get("/metrics")).text

    return anyio.run(scrape)


@pytest.fixture(scope="module")
def exported(scraped: str) -> set[str]:
    """Names of the samples that the app's own /metrics announces."""
    types = re.findall(r"^# TYPE (\S+) (\S+)$", scraped, re.MULTILINE)
    return {name + suffix for name, kind in types for suffix in SUFFIXES[kind]}


def test_every_metric_is_exported_or_recorded(exported: set[str]) -> None:
    for where, promql in expressions():
        unknown = metrics_in(promql) - exported - set(recorded())
        assert not unknown, f"{where}: {promql}"


def test_the_runbook_names_metrics_that_are_exported(exported: set[str]) -> None:
    named = set(re.findall(r"\brescore_\w+", (DEPLOY / "RUNBOOK.md").read_text("utf-8")))
    assert named
    assert named <= exported


def test_an_unknown_metric_would_be_found(exported: set[str]) -> None:
    assert metrics_in('sum(rate(rescore_request_total{route="rescore_x"}[5m]))') - exported == {
        "rescore_request_total"
    }


def test_every_recorded_metric_is_asked_for() -> None:
    used = set().union(*(metrics_in(promql) for _, promql in expressions()))
    assert set(recorded()) <= used


def test_the_autoscaler_reads_what_the_adapter_serves(exported: set[str]) -> None:
    adapter = load(DEPLOY / "kubernetes" / "prometheus-adapter-values.yaml")
    served = {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    assert autoscaled_by() <= served & exported


def test_a_pod_without_work_has_the_numbers_that_the_autoscaler_reads(scraped: str) -> None:
    # Pods that lack one count as busy when it scales down, and where all do it does not.
    zeros = re.findall(r"^(\w+)(?:{.*})? 0\.0$", scraped, re.MULTILINE)
    assert autoscaled_by() <= set(zeros)


def autoscaled_by() -> set[str]:
    """The metrics that replicas are counted by."""
    metrics = load(DEPLOY / "kubernetes" / "autoscaler.yaml")["spec"]["metrics"]
    return {metric["pods"]["metric"]["name"] for metric in metrics}


def test_outcomes_reasons_and_stages_are_those_the_service_counts() -> None:
    known = {
        "outcome": {"ok", "error", "deadline", "ranked", "degraded", "failed"},
        "reason": {"quota", "draining", "too_many"},
        "stage": {"parse", "queue", "tokenize", "forward", "combine", "serialize"},
    }
    asked = {found for _, promql in expressions() for found in LABEL_VALUES.findall(promql)}
    assert {label for label, _ in asked} == set(known)
    for label, values in asked:
        assert set(values.split("|")) <= known[label]
