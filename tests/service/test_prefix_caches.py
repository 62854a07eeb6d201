"""Requests that begin as earlier ones did cost less and get the same numbers."""

from __future__ import annotations

import gc
import weakref

import pytest

from service.metrics import Metrics
from service.prefix_caches import PrefixCaches
from tests.fakes import TableModel, fake_loaded
from tests.quantized_lm.lattice.random_lattices import random_lattice
from tests.service.serving import Json, lattice_entry, request, running, utterance

PARTIAL: Json = {"final": False, "context": {"text": ["a mat far"]}}


def without_costs(reply: Json) -> Json:
    return {key: reply[key] for key in ("model", "formula", "results")}


@pytest.mark.anyio
async def test_a_partial_goes_on_where_the_last_one_was() -> None:
    first = request(utterance("the cat", "a cat", **PARTIAL))
    then = request(utterance("the cat sat", "a cat sat", "the cat sat on", **PARTIAL))
    async with running(prefix_cache_bytes=0) as (client, _):
        alone = (await client.post("/v1/rescore", json=then)).json()
    async with running() as (client, _):
        missed = (await client.post("/v1/rescore", json=first)).json()
        found = (await client.post("/v1/rescore", json=then)).json()
        text = (await client.get("/metrics")).text
    assert without_costs(found) == without_costs(alone)
    assert (missed["usage"]["cache_hits"], alone["usage"]["cache_hits"]) == (0, 0)
    assert found["usage"]["cache_hits"] > 0
    assert 0 < found["usage"]["tree_nodes"] < alone["usage"]["tree_nodes"]
    assert 'rescore_prefix_cache_hits_total{model="tiny"} 1.0' in text
    assert 'rescore_prefix_cache_misses_total{model="tiny"} 1.0' in text
    known = alone["usage"]["tree_nodes"] - found["usage"]["tree_nodes"]
    assert f'rescore_tokens_total{{kind="cached",model="tiny"}} {known}.0' in text


@pytest.mark.anyio
async def test_a_partial_sent_twice_is_known() -> None:
    body = request(utterance("the cat", "a cat", **PARTIAL))
    model = TableModel()
    async with running(fake_loaded(model=model)) as (client, _):
        replies = [(await client.post("/v1/rescore", json=body)).json() for _ in range(2)]
    assert without_costs(replies[0]) == without_costs(replies[1])
    assert replies[1]["usage"]["tree_nodes"] == 0
    assert len(model.batch_sizes) == 1


@pytest.mark.anyio
async def test_a_lattice_in_a_known_context_is_searched_alike() -> None:
    entry = {**lattice_entry(random_lattice(3)), "context": {"text": ["a mat far"]}}
    async with running() as (client, _):
        replies = [
            (await client.post("/v1/rescore/lattice", json={"lattices": [entry]})).json()
            for _ in range(2)
        ]
    assert replies[0]["results"] == replies[1]["results"]
    assert replies[0]["usage"]["cache_hits"] == 0 < replies[1]["usage"]["cache_hits"]


def test_a_cache_does_not_keep_its_model() -> None:
    caches = PrefixCaches(1 << 20, Metrics())
    loaded = fake_loaded()
    cache = caches.of(loaded)
    assert cache is not None
    assert caches.of(loaded) is cache
    alive = weakref.ref(loaded.model)
    del loaded
    gc.collect()
    assert alive() is None
    with pytest.raises(ReferenceError):
        cache.begin([], None)
    again = fake_loaded()
    assert caches.of(again) is not cache
