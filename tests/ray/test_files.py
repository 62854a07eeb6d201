"""deploy/ray: each file names what the others and the service really have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli import read_settings
from service.settings import MIB, Settings
from tests.deploy.files import DEPLOY, ROOT, load, memory_bytes, run
from tests.ray.conftest import RunRay

FOLDER = DEPLOY / "ray"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """serve.yaml."""
    found: dict[str, Any] = load(FOLDER / "serve.yaml")
    return found


@pytest.fixture(scope="module")
def ray_service() -> dict[str, Any]:
    """rayservice.yaml."""
    found: dict[str, Any] = load(FOLDER / "rayservice.yaml")
    return found


def test_ray_accepts_the_configuration(run_ray: RunRay) -> None:
    assert run_ray("schema") == ["secondpass", "secondpass"]


def test_the_cluster_on_kubernetes_has_the_same_applications(
    config: dict[str, Any], ray_service: dict[str, Any]
) -> None:
    inner = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    assert inner == {"applications": config["applications"]}


@pytest.mark.parametrize("group", ["headGroupSpec", "workerGroupSpecs"])
def test_kubernetes_accepts_the_pods(
    ray_service: dict[str, Any], group: str, tmp_path: Path
) -> None:
    found = ray_service["spec"]["rayClusterConfig"][group]
    template = (found if group == "headGroupSpec" else found[0])["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **template}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod), "utf-8")
    run("kubernetes-validate", "--strict", "--no-warn", tmp_path / "pod.yaml")


def test_hadolint_accepts_the_dockerfile() -> None:
    run("hadolint", FOLDER / "Dockerfile")


def test_settings_are_the_services(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    settings = read_settings(application["args"])
    (deployment,) = application["deployments"]
    assert deployment["ray_actor_options"]["num_cpus"] == settings.threads
    assert deployment["max_ongoing_requests"] == Settings().max_queued_requests


def test_what_is_imported_is_there(config: dict[str, Any]) -> None:
    module, _, name = config["applications"][0]["import_path"].partition(":")
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")
    assert f"def {name}(args: dict[str, Any])" in text
    assert 'NAME = "secondpass"' in text


def test_nothing_waits_for_less_than_what_it_contains(
    config: dict[str, Any], ray_service: dict[str, Any]
) -> None:
    (deployment,) = config["applications"][0]["deployments"]
    longest_s = Settings().max_deadline_ms / 1000
    assert config["http_options"]["request_timeout_s"] > longest_s
    assert deployment["graceful_shutdown_timeout_s"] > longest_s
    (workers,) = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["cpu"] == str(
        deployment["ray_actor_options"]["num_cpus"]
    )


def test_a_body_that_is_read_fits_into_the_memory(
    config: dict[str, Any], ray_service: dict[str, Any]
) -> None:
    (workers,) = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    limit_bytes = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 1024 * MIB
    assert memory_bytes(read_settings(config["applications"][0]["args"])) < limit_bytes


def test_one_version_of_ray_everywhere(ray_service: dict[str, Any]) -> None:
    version = ray_service["spec"]["rayClusterConfig"]["rayVersion"]
    assert f'"ray[serve]=={version}"' in (FOLDER / "Dockerfile").read_text("utf-8")
    (least,) = re.findall(r'"ray\[data,serve\]>=([\d.]+),', (ROOT / "pyproject.toml").read_text())
    assert version.startswith(least)
