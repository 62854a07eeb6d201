"""The endpoints that score nothing: models, limits, probes, metrics, documentation."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from service import schemas
from service.errors import PROBLEM_JSON
from service.lattice_schemas import MAX_LATTICES
from tests.fakes import fake_loaded
from tests.service.serving import request, running

pytestmark = pytest.mark.anyio


async def test_models_say_their_size_bits_and_revision() -> None:
    async with running(fake_loaded("one"), fake_loaded("two")) as (client, _):
        listed = (await client.get("/v1/models")).json()["models"]
        detail = (await client.get("/v1/models/two")).json()
    assert [model["id"] for model in listed] == ["one", "two"]
    assert listed[1] == {name: detail[name] for name in listed[1]}
    assert detail["revision"] == "sha256:two"
    assert detail["bits_per_weight"] == 32.0
    assert detail["backend"] == "fake/table"
    assert detail["max_tokens"] == 64
    assert detail["text"] == {"case": "lower", "strip_punctuation": True}
    assert detail["provenance"] == {"made_by": "a test"}
    assert detail["tensors"]["table"] == {
        "format": "float32",
        "shape": [64, 64],
        "group_size": 0,
        "bits_per_weight": 32.0,
        "packed_bits_per_weight": 32.0,
        "size_bytes": 16384,
    }


async def test_models_say_how_they_lie_in_memory() -> None:
    expanded = dataclasses.replace(fake_loaded("two"), residency="expanded")
    async with running(fake_loaded("one"), expanded) as (client, _):
        listed = (await client.get("/v1/models")).json()["models"]
        schemas_of = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert [model["residency"] for model in listed] == ["packed", "expanded"]
    for name in ("ModelSummary", "ModelDetail"):
        assert schemas_of[name]["properties"]["residency"]["enum"] == ["packed", "expanded"]
        assert "residency" in schemas_of[name]["required"]


async def test_limits_are_those_the_schema_and_the_settings_enforce() -> None:
    async with running(budget_tokens=100, max_body_bytes=5000) as (client, _):
        limits = (await client.get("/v1/limits")).json()
    assert limits["utterances"] == schemas.MAX_UTTERANCES
    assert limits["hypotheses_per_utterance"] == schemas.MAX_HYPOTHESES
    assert (limits["tree_nodes_per_utterance"], limits["body_bytes"]) == (100, 5000)
    assert limits["tokens_per_text"] == {"tiny": 63}
    assert (limits["lattices"], limits["lattice_arcs"]) == (MAX_LATTICES, 100_000)
    assert limits["lattice_body_bytes"] == 16 << 20


async def test_the_token_limit_is_exact() -> None:
    async with running() as (client, _):
        longest = await client.post("/v1/score", json={"texts": ["a " * 63]})
        longer = await client.post("/v1/score", json={"texts": ["a " * 64]})
    assert (longest.status_code, longer.status_code) == (200, 422)


async def test_probes_of_a_healthy_server_are_200() -> None:
    async with running() as (client, _):
        for probe, status in (("live", "live"), ("startup", "started"), ("ready", "ready")):
            response = await client.get(f"/health/{probe}")
            assert (response.status_code, response.json()) == (200, {"status": status})


async def test_metrics_count_what_happened() -> None:
    async with running() as (client, _):
        await client.post("/v1/rescore", json=request())
        await client.post("/v1/rescore", json={})
        await client.get("/nowhere")
        text = (await client.get("/metrics")).text
        openmetrics = await client.get(
            "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
    ok = 'rescore_requests_total{model="tiny",outcome="ok",route="/v1/rescore"} 1.0'
    invalid = 'rescore_requests_total{model="other",outcome="invalid",route="/v1/rescore"} 1.0'
    unknown = 'rescore_requests_total{model="other",outcome="invalid",route="unknown"} 1.0'
    for line in (ok, invalid, unknown):
        assert line in text
    assert 'rescore_utterances_total{model="tiny",outcome="ranked"} 1.0' in text
    assert 'rescore_tokens_total{kind="requested",model="tiny"} 8.0' in text
    assert 'rescore_inflight_requests{model="tiny"} 0.0' in text
    assert 'kernel="fake/table"' in text
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")


async def test_every_stage_of_a_request_is_measured_once() -> None:
    async with running() as (client, app):
        await client.post("/v1/rescore", json=request())
        await client.post("/v1/score", json={"texts": ["a"]})
        value = app.state.core.metrics.registry.get_sample_value
    for stage in ("parse", "queue", "tokenize", "forward", "combine", "serialize"):
        assert value("rescore_stage_duration_seconds_count", {"stage": stage}) == 2.0


async def test_tokens_asked_for_are_computed_or_shared() -> None:
    async with running() as (client, app):
        usage = (await client.post("/v1/rescore", json=request())).json()["usage"]
        value = app.state.core.metrics.registry.get_sample_value
    kinds = {
        kind: value("rescore_tokens_total", {"model": "tiny", "kind": kind})
        for kind in ("requested", "scored", "deduplicated")
    }
    assert kinds["requested"] == usage["tokens"] == kinds["scored"] + kinds["deduplicated"]
    assert kinds["scored"] == usage["tree_nodes"]


async def test_two_apps_share_no_metrics() -> None:
    async with running() as (client, _), running() as (other, _):
        await client.post("/v1/rescore", json=request())
        text = (await other.get("/metrics")).text
    assert 'route="/v1/rescore"' not in text


async def test_docs_need_nothing_from_elsewhere() -> None:
    async with running() as (client, _):
        page = (await client.get("/docs")).text
        urls = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page)
        assert len(urls) == 4
        for url in urls:
            assert url.startswith("/")
            assert (await client.get(url)).status_code == 200
        assert "://" not in page
        assert (await client.get("/docs/assets/redoc.standalone.js")).status_code == 422


async def test_the_openapi_document_types_errors_as_problems() -> None:
    async with running() as (client, _):
        document = (await client.get("/openapi.json")).json()
        again = (await client.get("/openapi.json")).json()
    assert document == again
    responses = document["paths"]["/v1/rescore"]["post"]["responses"]
    assert set(responses) == {"200", "429", "4XX", "504", "5XX"}
    assert set(responses["4XX"]["content"]) == {PROBLEM_JSON}
    assert "RequestProblem" in document["components"]["schemas"]


async def test_the_examples_of_the_documentation_work() -> None:
    async with running() as (client, _):
        document: Any = (await client.get("/openapi.json")).json()
        for path in ("/v1/rescore", "/v1/score"):
            content = document["paths"][path]["post"]["requestBody"]["content"]
            for example in content["application/json"]["schema"]["examples"]:
                assert (await client.post(path, json=example)).status_code == 200


async def test_the_document_shows_one_name_of_the_graph_score() -> None:
    async with running() as (client, _):
        document: Any = (await client.get("/openapi.json")).json()
    hypothesis = document["components"]["schemas"]["Hypothesis"]
    assert set(hypothesis["properties"]) == {"text", "am_score", "graph_score", "extra"}
    assert hypothesis["additionalProperties"] is False
