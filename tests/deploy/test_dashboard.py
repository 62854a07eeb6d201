"""The dashboard: every panel draws something, none covers another, all read one source."""

from __future__ import annotations

from typing import Any

from tests.deploy.files import DEPLOY, dashboard, load, panels


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_has_a_title_a_unit_a_description_and_a_query() -> None:
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_all_of_it_reads_the_provisioned_datasource() -> None:
    source = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert _datasources(dashboard()) == {(source["type"], source["uid"])}


def test_every_stage_has_its_median_and_its_tails() -> None:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    for quantile in ("0.5", "0.95", "0.99"):
        head = f"histogram_quantile({quantile}, sum by (stage, le)"
        assert any(expression.startswith(head) for expression in shown)


def _datasources(node: Any) -> set[tuple[str, str]]:
    if isinstance(node, list):
        return set().union(*map(_datasources, node))
    if not isinstance(node, dict):
        return set()
    found = (
        {(node["datasource"]["type"], node["datasource"]["uid"])} if "datasource" in node else set()
    )
    return found.union(*map(_datasources, node.values()))
