"""The compose file: valid, hardened, and everything that it mounts is here."""

from __future__ import annotations

import re
from typing import Any

import pytest

from service.settings import MIB, Settings
from tests.deploy.files import DEPLOY, ROOT, load, memory_bytes, run

COMPOSE = DEPLOY / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Services by name."""
    found: dict[str, Any] = load(COMPOSE)["services"]
    return found


def test_docker_compose_accepts_it() -> None:
    # Debian's docker-compose knows the whole schema but the project's name, which is younger.
    text = re.sub(r"(?m)^name: .*\n", "", COMPOSE.read_text(encoding="utf-8"))
    args = ("--file", "-", "--project-directory", DEPLOY, "config", "--quiet")
    run("docker-compose", *args, given=text)


def test_all_that_is_mounted_is_here_and_cannot_be_written(services: dict[str, Any]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    assert mounts
    for mount in mounts:
        source, _, mode = mount.split(":")
        assert (DEPLOY / source).exists(), source
        assert mode == "ro"


def test_what_is_logged_does_not_fill_the_disk(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name


def test_no_port_is_open_beyond_this_machine(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_whoever_reaches_grafana_looks_and_nobody_logs_in(services: dict[str, Any]) -> None:
    grafana = services["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert grafana["GF_AUTH_BASIC_ENABLED"] == "false"  # the form is not the only door


def test_the_service_and_the_decoder_may_do_as_little_as_they_need(
    services: dict[str, Any],
) -> None:
    for name in ("secondpass", "decoder"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]


def test_requests_in_flight_may_finish_before_the_container_is_killed(
    services: dict[str, Any],
) -> None:
    grace_s = int(services["secondpass"]["stop_grace_period"].removesuffix("s"))
    settings = Settings.model_fields
    assert grace_s > settings["drain_s"].default + settings["shutdown_s"].default


def test_threads_are_as_many_as_the_quota_allows(services: dict[str, Any]) -> None:
    served = services["secondpass"]
    assert int(served["environment"]["SECONDPASS_THREADS"]) == served["cpus"]


def test_a_body_that_is_read_fits_into_the_memory(services: dict[str, Any]) -> None:
    limit_bytes = int(services["secondpass"]["mem_limit"].removesuffix("g")) * 1024 * MIB
    assert memory_bytes(Settings()) < limit_bytes


def test_everyone_speaks_to_the_port_the_service_listens_on(services: dict[str, Any]) -> None:
    port = Settings.model_fields["port"].default
    scrapes = load(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]
    assert services["decoder"]["command"][-1] == f"http://secondpass:{port}"
    assert services["secondpass"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert scrapes[0]["static_configs"] == [{"targets": [f"secondpass:{port}"]}]


def test_the_rules_and_the_dashboard_are_where_the_configuration_looks(
    services: dict[str, Any],
) -> None:
    mounted = {
        mount.split(":")[1]: DEPLOY / mount.split(":")[0]
        for name in ("prometheus", "grafana")
        for mount in services[name]["volumes"]
    }
    for rules in load(DEPLOY / "prometheus/prometheus.yml")["rule_files"]:
        assert mounted[f"/etc/prometheus/{rules}"].is_file()
    provider = load(DEPLOY / "grafana/provisioning/dashboards/secondpass.yaml")["providers"][0]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"] + "/")
    assert mounted[home].is_file()


def test_it_is_built_from_the_dockerfile_of_this_checkout(services: dict[str, Any]) -> None:
    context = services["secondpass"]["build"]
    assert (DEPLOY / context / "Dockerfile").resolve() == ROOT / "Dockerfile"
