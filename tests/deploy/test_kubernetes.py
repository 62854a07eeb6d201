"""The manifests: valid, and each names what the others and the service really have."""

from __future__ import annotations

import math
from typing import Any

import pytest

from service.app import create_app
from service.settings import MIB, Settings
from tests.deploy.files import DEPLOY, MANIFESTS, load, memory_bytes, run

FOLDER = DEPLOY / "kubernetes"
OPTIONAL = {"podmonitor.yaml", "prometheus-adapter-values.yaml"}


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """The pod of the Deployment."""
    found: dict[str, Any] = load(FOLDER / "deployment.yaml")["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """Its only container."""
    (found,) = pod["containers"]
    return dict(found)


# The oldest that knows all fields, and the newest at the time of writing.
@pytest.mark.parametrize("version", ["1.30.0", "1.37.0"])
def test_kubernetes_validate_accepts_them(version: str) -> None:
    args = ("--strict", "--no-warn", "--kubernetes-version", version)
    run("kubernetes-validate", *args, *MANIFESTS)


def test_every_file_is_applied_or_said_to_be_optional() -> None:
    applied = set(load(FOLDER / "kustomization.yaml")["resources"])
    assert not applied & OPTIONAL
    assert applied | OPTIONAL | {"kustomization.yaml"} == {path.name for path in FOLDER.iterdir()}


def test_every_selector_finds_the_pods() -> None:
    labels = load(FOLDER / "deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    for path in MANIFESTS:
        for selector in _ours(load(path)["spec"]):
            assert selector.items() <= labels.items(), path.name


def test_probes_ask_for_paths_that_the_service_has(container: dict[str, Any]) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    monitored = load(FOLDER / "podmonitor.yaml")["spec"]["podMetricsEndpoints"][0]
    assert {*(probe["path"] for probe in probes), monitored["path"]} <= paths.keys()
    assert {probe["port"] for probe in probes} == {"http"}
    assert monitored["port"] == "admin"


def test_prometheus_knows_the_pods_by_the_job_that_rules_know() -> None:
    labels = load(FOLDER / "deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    job = labels[load(FOLDER / "podmonitor.yaml")["spec"]["jobLabel"]]
    assert {job} == {
        one["job_name"] for one in load(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]
    }


def test_ports_are_those_the_service_listens_on(container: dict[str, Any]) -> None:
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert container["ports"] == [
        {"name": "http", "containerPort": Settings.model_fields["port"].default},
        {"name": "admin", "containerPort": int(given["SECONDPASS_ADMIN_PORT"])},
    ]


def test_decoders_reach_the_main_port_and_prometheus_the_admin_port() -> None:
    (exposed,) = load(FOLDER / "service.yaml")["spec"]["ports"]
    assert exposed["targetPort"] == "http"
    decoders, prometheus = load(FOLDER / "network.yaml")["spec"]["ingress"]
    for rule, label, port in ((decoders, "decoder", "http"), (prometheus, "prometheus", "admin")):
        (opened,) = rule["ports"]
        assert opened["port"] == port
        (source,) = rule["from"]
        assert label in source["podSelector"]["matchLabels"].values()


def test_who_deploys_is_told_which_pods_are_let_in() -> None:
    decoders, prometheus = load(FOLDER / "network.yaml")["spec"]["ingress"]
    (label,) = decoders["from"][0]["podSelector"]["matchLabels"].items()
    (namespace,) = prometheus["from"][0]["namespaceSelector"]["matchLabels"].values()
    for path in (FOLDER / "kustomization.yaml", DEPLOY.parent / "README.md"):
        text = path.read_text(encoding="utf-8")
        assert ": ".join(label) in text
        assert f"namespace {namespace}" in text.replace("`", "")


def test_api_keys_are_a_secret_that_only_the_service_reads(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    (mount,) = (one for one in container["volumeMounts"] if one["name"] == "api-keys")
    (volume,) = (one for one in pod["volumes"] if one["name"] == "api-keys")
    assert mount["readOnly"]
    assert given["SECONDPASS_API_KEYS_FILE"].startswith(f"{mount['mountPath']}/")
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    header = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    assert f"generic {volume['secret']['secretName']} --from-file=keys.json" in header


def test_settings_are_those_the_service_reads(container: dict[str, Any]) -> None:
    names = {entry["name"] for entry in container["env"]}
    assert names <= {f"SECONDPASS_{name.upper()}" for name in Settings.model_fields}


def test_the_names_of_a_service_link_are_kept_from_the_settings(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False


def test_requests_in_flight_may_finish_before_the_pod_is_killed(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    needed_s = (
        container["lifecycle"]["preStop"]["sleep"]["seconds"]
        + float(given["SECONDPASS_DRAIN_S"])
        + float(given["SECONDPASS_SHUTDOWN_S"])
    )
    assert pod["terminationGracePeriodSeconds"] > needed_s


def test_a_pod_may_do_as_little_as_it_needs(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_image_runs_as_the_user_the_pod_demands(pod: dict[str, Any]) -> None:
    user, group = (pod["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text(encoding="utf-8")
    assert f"\nUSER {user}:{group}\n" in dockerfile


def test_a_replica_has_whole_cores_of_its_own(container: dict[str, Any]) -> None:
    # Threads are as many as the limit; a fraction would be rounded up and throttled.
    limits, requests = (container["resources"][key] for key in ("limits", "requests"))
    assert limits["cpu"] == requests["cpu"] == str(math.floor(float(limits["cpu"])))


def test_a_body_that_is_read_fits_into_the_memory(container: dict[str, Any]) -> None:
    limit_bytes = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 1024 * MIB
    assert memory_bytes(Settings()) < limit_bytes
    assert memory_bytes(Settings(max_lattice_body_bytes=64 * MIB)) > limit_bytes


def test_the_autoscaler_and_the_budget_leave_one_replica_to_be_moved() -> None:
    fewest = load(FOLDER / "autoscaler.yaml")["spec"]["minReplicas"]
    assert fewest > load(FOLDER / "disruption.yaml")["spec"]["maxUnavailable"]


def test_the_autoscaler_acts_before_a_forward_pass_is_full() -> None:
    target = load(FOLDER / "autoscaler.yaml")["spec"]["metrics"][0]["pods"]["target"]
    assert int(target["averageValue"]) < Settings.model_fields["budget_tokens"].default


def _ours(node: Any) -> list[dict[str, str]]:
    """Every set of labels in a manifest that is meant to find our own pods."""
    if isinstance(node, list):
        return [found for entry in node for found in _ours(entry)]
    if not isinstance(node, dict):
        return []
    found = [found for entry in node.values() for found in _ours(entry)]
    is_ours = node.get("app.kubernetes.io/name") == "secondpass"
    return [*found, node] if is_ours else found
