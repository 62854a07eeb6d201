"""Every fault of a network or a service, and what the caller gets: an answer, or its own list."""

from __future__ import annotations

import json

import httpx
import pytest

from quantized_lm.errors import InputError
from service.client import ClientSettings, RefusedRequestError
from tests.service.client.conftest import Drive
from tests.service.client.driving import (
    LISTS,
    OWN,
    OWN_ID,
    TURNED,
    Fault,
    World,
    answered,
    refused,
    reply_to,
    texts,
)

DROPPED = httpx.ReadError("reset")


def unread(status: int, code: str, **headers: str) -> httpx.Response:
    """Problem details of a service that has read no head, so that the id is one it made itself."""
    body = json.loads(refused(status, code, request_id="req_1").content)
    return answered(body | {"instance": ""}, status, **headers)


# What comes of every attempt, the reason, and how often it is tried within three attempts.
FAULTS: dict[str, tuple[httpx.Response | Exception, str, int]] = {
    "connection refused": (httpx.ConnectError("refused"), "unavailable", 3),
    "no route": (httpx.ConnectTimeout("no route"), "unavailable", 3),
    "dropped while sending": (httpx.WriteError("reset"), "unavailable", 3),
    "dropped while reading": (DROPPED, "unavailable", 3),
    "cut off": (httpx.RemoteProtocolError("incomplete"), "unavailable", 3),
    "late": (httpx.ReadTimeout("late"), "deadline", 1),
    "no free connection": (httpx.PoolTimeout("busy"), "deadline", 1),
    "not decodable": (httpx.DecodingError("gzip"), "invalid_reply", 1),
    "a bug below": (KeyError("?"), "unavailable", 1),
    "500": (refused(500, "internal"), "unavailable", 3),
    "502 of a proxy": (httpx.Response(502, content=b"<html>"), "unavailable", 3),
    "503 not ready": (refused(503, "not_ready"), "unavailable", 3),
    "503 on connecting": (unread(503, "too_many_connections"), "unavailable", 3),
    "503 on connecting, later": (
        unread(503, "too_many_connections", Retry_After="7"),
        "unavailable",
        1,
    ),
    "504 of a proxy": (httpx.Response(504), "unavailable", 3),
    "504 of the service": (refused(504, "deadline_exceeded"), "deadline", 1),
    "429": (refused(429, "overloaded"), "overloaded", 3),
    "429, soon": (refused(429, "overloaded", Retry_After="0"), "overloaded", 3),
    "429, later than the deadline": (refused(429, "overloaded", Retry_After="7"), "overloaded", 1),
    "429, at a date": (
        refused(429, "quota", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
        "overloaded",
        1,
    ),
    "401": (refused(401, "unauthenticated"), "refused", 1),
    "403": (refused(403, "forbidden"), "refused", 1),
    "404 model": (refused(404, "model_not_found"), "refused", 1),
    "404 of something else": (httpx.Response(404, content=b"no"), "invalid_reply", 1),
    "422 of something else": (answered({"detail": "no"}, 422), "invalid_reply", 1),
    "400 of no head": (unread(400, "malformed_http"), "invalid_reply", 1),
    "431 of no head": (unread(431, "headers_too_large"), "invalid_reply", 1),
    "301": (httpx.Response(301, headers={"Location": "/"}), "invalid_reply", 1),
    "408": (httpx.Response(408), "invalid_reply", 1),
    "204": (httpx.Response(204), "invalid_reply", 1),
    "not JSON": (httpx.Response(200, content=b"\xff{"), "invalid_reply", 1),
    "half of it": (httpx.Response(200, content=answered().content[:40]), "invalid_reply", 1),
    "nested for ever": (httpx.Response(200, content=b"[" * 200_000), "invalid_reply", 1),
    "a list": (answered([]), "invalid_reply", 1),
    "NaN": (
        httpx.Response(200, content=b'{"id": "%b", "results": NaN}' % OWN_ID.encode()),
        "invalid_reply",
        1,
    ),
    "too few results": (answered({"results": []}), "invalid_reply", 1),
    "to another request": (answered(reply_to(LISTS) | {"id": "req_1"}), "invalid_reply", 1),
    "to nobody": (answered(reply_to(LISTS) | {"id": None}), "invalid_reply", 1),
    "another's refusal": (refused(422, "oov", request_id="req_1"), "invalid_reply", 1),
    "another's 429": (refused(429, "overloaded", request_id="req_1"), "invalid_reply", 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_decoders_own_lists_stand(drive: Drive, name: str) -> None:
    fault, reason, attempts = FAULTS[name]
    world = World([fault])
    client = drive(world)
    reply = client.rescore()
    assert texts(reply) == OWN
    assert reply.degraded == (reason,)
    assert all(one.degraded == (reason,) and not one.changed for one in reply.results)
    assert [one.id for one in reply.results] == ["u1", "u2"]
    assert len(world.requests) == attempts
    assert client.stats.fallbacks == {reason: 1}
    assert client.stats.retries == attempts - 1


@pytest.mark.parametrize("name", [name for name, (*_, tries) in FAULTS.items() if tries > 1])
def test_a_fault_that_passes_costs_a_pause(drive: Drive, name: str) -> None:
    world = World([FAULTS[name][0], answered()])
    client = drive(world)
    reply = client.rescore()
    assert texts(reply) == TURNED
    assert reply.degraded == ()
    assert all(one.changed and one.degraded == () for one in reply.results)
    assert (len(world.requests), len(world.pauses)) == (2, 1)
    stats = client.stats
    assert (stats.calls, stats.answered, stats.retries, stats.fallbacks) == (1, 1, 1, {})


def test_attempts_are_of_one_request(drive: Drive) -> None:
    world = World([DROPPED, DROPPED, answered()])
    drive(world, api_key="k").rescore(weights={"lm_scale": 0.7}, model=None)
    assert len({request.headers["X-Request-ID"] for request in world.requests}) == 1
    assert len({request.content for request in world.requests}) == 1
    body = json.loads(world.requests[0].content)
    assert body == {"utterances": LISTS, "weights": {"lm_scale": 0.7}}
    assert {request.headers["Authorization"] for request in world.requests} == {"Bearer k"}
    assert "k" not in repr(ClientSettings(api_key="k")).split("api_key")[-1:][0][:3]


def test_another_requests_words_never_come_back(drive: Drive) -> None:
    scored = {"id": "req_1", "results": [{"text": "a", "log_prob": -1}]}
    assert drive(World([answered(scored)])).score(["a"]).results[0].log_prob is None
    found = {"id": "req_1", "results": [{"hypotheses": [{"text": "b", "score": -1}]}]}
    reply = drive(World([answered(found)])).rescore_lattice({"arcs": []}, first_pass=["a"])
    assert (reply.text, reply.degraded) == ("a", ("invalid_reply",))
    assert "X-Request-ID" in reply.detail


def test_a_proxy_may_name_requests_as_it_likes(drive: Drive) -> None:
    renamed = answered(reply_to(LISTS) | {"id": "of-a-proxy"}, X_Call_ID=OWN_ID)
    assert texts(drive(World([renamed])).rescore()) == TURNED
    foreign = answered(X_Call_ID="req_1")
    assert drive(World([foreign])).rescore().degraded == ("invalid_reply",)


def test_what_is_said_before_a_head_is_read_is_no_other_requests_answer(drive: Drive) -> None:
    world = World([unread(503, "too_many_connections", Retry_After="1"), answered()])
    assert texts(drive(world).rescore(deadline_ms=2000)) == TURNED
    assert world.pauses == [1.0]
    reply = drive(World([unread(503, "too_many_connections")])).rescore()
    assert reply.detail == "503: no"
    assert reply.problem is not None
    assert reply.problem.code == "too_many_connections"


def test_connections_that_cannot_be_closed_cost_no_transcript(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(_: object) -> None:
        raise OSError("cannot")

    client = drive(World([answered({"id": "req_1"}), answered()]))
    with monkeypatch.context() as patch:
        for name in ("close", "aclose"):
            patch.setattr(httpx.MockTransport, name, close)
        assert client.rescore().degraded == ("invalid_reply",)
    assert texts(client.rescore()) == TURNED


def test_pauses_are_random_within_a_bound_that_doubles(drive: Drive) -> None:
    world = World([DROPPED], chance=0.5)
    drive(world, backoff_ms=100, max_backoff_ms=300, max_attempts=5, deadline_ms=60_000).rescore()
    assert world.pauses == pytest.approx([0.05, 0.1, 0.15, 0.15])


def test_retry_after_is_waited_for_if_it_fits(drive: Drive) -> None:
    world = World([refused(429, "overloaded", Retry_After="1"), answered()], chance=0.5)
    reply = drive(world, backoff_ms=100).rescore(deadline_ms=2000)
    assert world.pauses == pytest.approx([1.05])
    assert texts(reply) == TURNED
    assert drive(World([refused(503, "draining", Retry_After="1")])).rescore(
        deadline_ms=1000
    ).degraded == ("unavailable",)


def test_the_service_is_told_what_time_is_left(drive: Drive) -> None:
    world = World([Fault(refused(503, "draining"), takes_s=0.3), answered()], chance=1.0)
    drive(world, network_allowance_ms=30, backoff_ms=200).rescore(deadline_ms=900)
    told = [int(request.headers["X-Request-Timeout-Ms"]) for request in world.requests]
    assert told == [870, 900 - 300 - 200 - 30]
    assert [one["read"] for one in world.timeouts] == pytest.approx([0.9, 0.4])
    assert all(one["connect"] <= one["read"] for one in world.timeouts)


def test_no_attempt_begins_after_the_deadline(drive: Drive) -> None:
    world = World([Fault(DROPPED, takes_s=0.45)])
    reply = drive(world, max_attempts=50).rescore(deadline_ms=1000)
    assert len(world.requests) == 3
    assert reply.degraded == ("unavailable",)


def test_a_deadline_within_the_allowance_sends_nothing(drive: Drive) -> None:
    world = World([answered()])
    client = drive(world, network_allowance_ms=20, failures_to_open=1)
    assert client.rescore(deadline_ms=20.5).degraded == ("deadline",)
    assert not world.requests
    assert texts(client.rescore()) == TURNED  # it says nothing against the service


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_is_wrong_with_the_request_raises_and_keeps_the_lists(
    drive: Drive, status: int
) -> None:
    world = World([refused(status, "code", "why")])
    client = drive(world)
    with pytest.raises(RefusedRequestError, match=f"{status} code: ") as caught:
        client.rescore()
    assert texts(caught.value.first_pass) == OWN  # type: ignore[arg-type]
    assert caught.value.problem.code == "code"
    assert len(world.requests) == 1
    assert client.stats.refused == 1


def test_or_it_does_not(drive: Drive) -> None:
    client = drive(World([refused(422, "too_long")]), on_invalid="first_pass")
    reply = client.rescore()
    assert texts(reply) == OWN
    assert reply.degraded == ("invalid",)
    assert reply.problem is not None
    assert reply.problem.errors == (("/weights/x", "unknown"),)


def test_one_bad_utterance_is_in_the_decoders_order_and_says_why(drive: Drive) -> None:
    body = json.loads(answered().content)
    body["results"][1] = {"id": "u2", "error": {"status": 422, "code": "oov", "detail": "x"}}
    good, bad = drive(World([answered(body)])).rescore().results
    assert (good.degraded, good.changed) == ((), True)
    assert ([one.text for one in bad.hypotheses], bad.degraded) == (OWN[1], ("invalid",))
    assert bad.problem is not None
    assert bad.problem.code == "oov"


def test_what_the_service_says_of_a_result_comes_through(drive: Drive) -> None:
    body = json.loads(answered().content)
    body["results"][0] |= {"degraded": ["deadline"]}
    body["results"][0]["hypotheses"][0] |= {"score": None, "posterior": 0.25}
    reply = drive(World([answered(body)])).rescore()
    first = reply.results[0]
    assert (reply.degraded, first.degraded) == ((), ("deadline",))
    assert (first.hypotheses[0].score, first.hypotheses[0].posterior) == (None, 0.25)
    assert reply.body["model"] == "m"


def test_n_best_also_cuts_the_decoders_list(drive: Drive) -> None:
    reply = drive(World([DROPPED])).rescore({"utterances": LISTS, "options": {"n_best": 1}})
    assert texts(reply) == [["the whether"], ["nice"]]


def test_a_reply_that_is_too_long_is_not_read(drive: Drive) -> None:
    client = drive(World([answered()]), max_reply_bytes=100)
    assert client.rescore().degraded == ("invalid_reply",)


def test_score_gives_texts_without_numbers(drive: Drive) -> None:
    good = {"results": [{"text": "a", "log_prob": -1}, {"text": "b", "log_prob": -2.5}]}
    reply = drive(World([answered(good)])).score(["a", "b"], final=False)
    assert [one.log_prob for one in reply.results] == [-1, -2.5]
    for bad in ({"results": [{"text": "a", "log_prob": -1}, {"text": "a", "log_prob": -1}]}, {}):
        none = drive(World([answered(bad)])).score(["a", "b"])
        assert [(one.text, one.log_prob) for one in none.results] == [("a", None), ("b", None)]
        assert none.degraded == ("invalid_reply",)


def test_a_lattice_has_the_decoders_text_in_its_place(drive: Drive) -> None:
    good = {
        "results": [{"exact": True, "hypotheses": [{"text": "b", "score": -1}], "cuts": ["order"]}]
    }
    world = World([answered(good)])
    reply = drive(world).rescore_lattice(b"N=1", format="htk", first_pass=["a"], id="u")
    assert (reply.text, reply.is_exact, reply.cuts) == ("b", True, ("order",))
    assert json.loads(world.requests[0].content)["lattices"] == [
        {"format": "htk", "id": "u", "text": "N=1"}
    ]
    for bad in (DROPPED, answered({"results": [{"hypotheses": []}]})):
        none = drive(World([bad])).rescore_lattice({"arcs": []}, first_pass=["a"])
        assert none.text == "a"
        assert none.degraded


BAD_ASKS = {
    "no list": [],
    "a text": "the cat",
    "no hypotheses": [{"hypotheses": []}],
    "no text": [{"hypotheses": [{"am_score": 1.0}]}],
    "not an object": ["the cat"],
    "not JSON": [{"hypotheses": [{"text": "a", "am_score": float("nan")}]}],
    "no type of JSON": [{"hypotheses": [{"text": "a", "extra": {1, 2}}]}],
}


@pytest.mark.parametrize("name", BAD_ASKS)
def test_what_has_no_list_to_give_back_raises_before_it_is_sent(drive: Drive, name: str) -> None:
    world = World([answered()])
    with pytest.raises(InputError):
        drive(world, on_invalid="first_pass").rescore(BAD_ASKS[name])
    assert not world.requests


def test_a_lattice_needs_a_format_that_fits_it(drive: Drive) -> None:
    client = drive(World([answered()]))
    for lattice, chosen in ((b"", "k2-json"), ({}, "htk"), (b"", "xml"), (b"\xff", "htk")):
        with pytest.raises(InputError):
            client.rescore_lattice(lattice, format=chosen, first_pass=["a"])
    with pytest.raises(InputError, match="first_pass"):
        client.rescore_lattice({}, first_pass=[])


@pytest.mark.parametrize(
    "settings",
    [{"deadline_ms": 0}, {"max_attempts": 0}, {"backoff_ms": -1}, {"on_invalid": "ignore"}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        ClientSettings(**settings)  # type: ignore[arg-type]
