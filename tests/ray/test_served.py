"""The service on Ray Serve, two nodes: the plain server's answers, and none lost when parts die."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ray.conftest import LIMIT_S, RunRay

pytestmark = pytest.mark.timeout(LIMIT_S + 10)


@pytest.fixture(scope="module")
def found(run_ray: RunRay) -> dict[str, Any]:
    """What tests/ray_env/served.py finds."""
    results: dict[str, Any] = run_ray("served")
    return results


def test_answers_are_the_plain_servers(found: dict[str, Any]) -> None:
    assert len(found["served"]) == 4
    for reply in (*found["served"], found["again"]):
        assert reply == found["plain"]


def test_no_call_is_lost_when_a_replica_is_killed_and_a_node_is_gone(found: dict[str, Any]) -> None:
    assert found["outcomes"].keys() == {"answered"}
    assert found["outcomes"]["answered"] >= 80
