"""The client for k2 without k2: what becomes of lattices that the service refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from service import k2_client
from service.client import Client, ClientSettings, RefusedRequestError
from service.k2_client import RescoredFsa, RescoreOptions, rescore_lattices
from tests.quantized_lm.lattice.random_lattices import random_lattice
from tests.service.client.driving import URL, World, answered, refused

PROBLEM = {"status": 422, "code": "invalid_lattice", "detail": "no", "errors": []}
FOUND = {"hypotheses": [{"text": "the cat"}], "degraded": []}
ONE = refused(422, "invalid_lattice")  # of a request of one it is the answer
SEVERAL = answered({"results": [{"error": PROBLEM}, FOUND]})


def rescored(
    count: int, answer: httpx.Response, on_invalid: Any, monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """What comes of some lattices, of which the service refuses the first."""
    monkeypatch.setattr(k2_client, "_connected", lambda _: iter(range(count)))
    monkeypatch.setattr(k2_client, "to_lattice", lambda seed, _: random_lattice(seed))
    monkeypatch.setattr(k2_client, "_best_text", lambda seed, _: f"own {seed}")
    transport = httpx.MockTransport(World([answer]).answer)
    settings = ClientSettings(on_invalid=on_invalid)
    with Client(URL, settings, transport=lambda: transport) as client:
        options = RescoreOptions(returns_fsa=False)
        return rescore_lattices(SimpleNamespace(), client=client, symbols={}, options=options)


@pytest.mark.parametrize(("count", "answer"), [(1, ONE), (2, SEVERAL)])
def test_a_refused_lattice_is_treated_alike_alone_and_among_others(
    count: int, answer: httpx.Response, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = rescored(count, answer, "raise", monkeypatch)
    assert isinstance(first, RefusedRequestError)
    first, *others = rescored(count, answer, "first_pass", monkeypatch)
    assert isinstance(first, RescoredFsa)
    assert (first.hypotheses[0].text, first.degraded) == ("own 0", ("invalid",))
    assert [one.hypotheses[0].text for one in others] == ["the cat"] * (count - 1)
