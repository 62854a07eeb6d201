"""The Dockerfile, as far as it can be judged without building; tests/deploy/image.sh builds it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from service.settings import Settings
from tests.deploy.files import ROOT, load, run
from tests.deploy.loopback import DEAD_PROXY, answering

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def health_check(final: str) -> list[str]:
    """The command that says whether the container is well."""
    (check,) = re.findall(r"^HEALTHCHECK [^\n]*\\\n +CMD (.+)$", final, re.MULTILINE)
    command: list[str] = json.loads(check)
    return command


@pytest.fixture(scope="module")
def final() -> str:
    """The instructions of the stage that serves."""
    return (ROOT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]


def test_hadolint_accepts_it() -> None:
    run("hadolint", "Dockerfile")


def test_torch_is_that_of_the_makefile_and_only_where_it_is_wanted(final: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^TORCH \?= (.+)$", makefile, re.MULTILINE)
    assert f"${{TORCH:-{torch}}}" in final
    assert 'ARG TORCH=""\n' in final
    assert 'if [ "${DEVICE}" = cuda ] || [ -n "${TORCH}" ]; then' in final


def test_the_version_is_that_of_the_package_everywhere(final: str) -> None:
    (version,) = re.findall(r'^version = "(.+)"$', PROJECT, re.MULTILINE)
    pod = load(ROOT / "deploy/kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    image = f"secondpass:{version}"
    assert f"ARG VERSION={version}\n" in final
    assert load(ROOT / "deploy/compose.yaml")["services"]["secondpass"]["image"] == image
    assert pod["containers"][0]["image"] == image
    assert f" --tag {image} " in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_exposed_port_is_the_one_served(final: str) -> None:
    assert f"\nEXPOSE {Settings.model_fields['port'].default}\n" in final


def test_the_server_is_the_first_process_and_the_health_check_needs_no_shell(final: str) -> None:
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)$", final, re.MULTILINE)
    assert json.loads(entrypoint) == ["secondpass", "serve", "--host", "0.0.0.0"]
    assert health_check(final)[:2] == ["python", "-c"]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_server_and_no_proxy(final: str, status: int, code: int) -> None:
    with answering(b"{}", status) as port:
        env = os.environ | DEAD_PROXY | {"SECONDPASS_PORT": str(port)}
        args = [sys.executable, *health_check(final)[1:]]
        assert subprocess.run(args, env=env, timeout=60, check=False).returncode == code


def test_who_runs_the_image_gives_it_time_to_stop() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (stop_s,) = re.findall(r"^docker run .*--stop-timeout (\d+)", readme, re.MULTILINE)
    settings = Settings()
    assert int(stop_s) > settings.drain_s + settings.shutdown_s  # docker's own is 10 s


def test_the_builder_is_sent_nothing_but_what_the_wheel_needs() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    taken_back = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.M)
        for word in line.split()[:-1]
    }
    assert taken_back == copied
    # What the wheel leaves out would only have it built anew; but for what is compiled into it.
    (left_out,) = re.findall(r"^wheel\.exclude = \[(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)
    patterns = {pattern.removesuffix("/**") for pattern in re.findall(r'"(.+)"', left_out)}
    assert patterns - set(rules) == {"quantized_lm/ops/csrc"}


def test_what_we_depend_on_is_a_layer_of_its_own_before_ours(final: str) -> None:
    steps = re.findall(r"^RUN (.+?[^\\])$", final, re.MULTILINE | re.DOTALL)
    depends, ours = (
        next(place for place, step in enumerate(steps) if part in step)
        for part in ("--requirement", "/wheels/*.whl")
    )
    assert depends < ours
    (code,) = re.findall("python -c '(.+)' >", steps[depends])
    done = subprocess.run(
        [sys.executable, "-c", code.replace("/project/", f"{ROOT}/")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (extra,) = re.findall(r"\.whl\)\[(\w+)\]", steps[ours])
    declared = re.findall(rf"^(?:dependencies|{extra}) = \[(.*?)^\]", PROJECT, re.M | re.DOTALL)
    ranges = [one for part in declared for one in re.findall(r'^  "(.+)",$', part, re.M)]
    assert done.stdout.splitlines() == ranges
