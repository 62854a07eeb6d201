"""A server that is told to go, or is killed, loses no request that it had taken."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.client import Client, ClientSettings
from tests.chaos.servers import BODY, PATIENCE_S, fake, wait_until
from tests.service.serving import request, utterance

pytestmark = pytest.mark.real_clock
CLIENTS = 8
PASS_S = 0.2
LATENCY_S = 0.05  # from a client's send to the server having read it, with much to spare
HEADERS = {"Content-Type": "application/json", "Connection": "close"}
TEXTS = ["the cat sat", "a cat sat", "the mat"]


def test_sigterm_under_load_answers_all_that_was_in_flight_and_exits_0() -> None:
    outcomes: list[tuple[float, str]] = []  # when it was sent, what came of it
    is_over = threading.Event()

    def ask(address: tuple[str, int]) -> None:
        while not is_over.is_set():
            sent_s = time.monotonic()
            outcomes.append((sent_s, outcome_of_one(address)))
            if outcomes[-1][1] != "200":
                is_over.wait(0.01)

    with fake(PASS_S, default_deadline_ms=20_000) as server, ThreadPoolExecutor(CLIENTS) as pool:
        try:
            asking = [pool.submit(ask, server.address) for _ in range(CLIENTS)]
            wait_until(lambda: len(outcomes) >= CLIENTS)
            wait_until(lambda: server.metric("rescore_inflight_requests") >= CLIENTS // 2)
            server.process.send_signal(signal.SIGTERM)
            signaled_s = time.monotonic()
            assert server.process.wait(PATIENCE_S) == 0
            ended_s = time.monotonic()
        finally:
            is_over.set()
        for one in asking:
            one.result(PATIENCE_S)
    taken = Counter(outcome for sent_s, outcome in outcomes if sent_s < signaled_s - LATENCY_S)
    later = Counter(outcome for sent_s, outcome in outcomes if sent_s >= signaled_s - LATENCY_S)
    assert set(taken) == {"200"}
    # A connection that the kernel took and the server did not is reset when the port closes.
    assert set(later) <= {"200", "503", "refused", "lost"}
    assert later["refused"] > 0
    assert ended_s - signaled_s < 10.0
    assert "Traceback" not in server.log


def outcome_of_one(address: tuple[str, int]) -> str:
    """What becomes of one request on a connection of its own: a status, refused or lost."""
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return "refused"
    except ConnectionError:
        return "lost"
    try:
        connection.request("POST", "/v1/rescore", BODY, HEADERS)
        return str(connection.getresponse().status)
    except (ConnectionError, http.client.HTTPException):
        return "lost"
    finally:
        connection.close()


def test_a_server_that_is_killed_costs_a_decoder_nothing_but_the_lm() -> None:
    utterances = [utterance(*TEXTS, id="u1")]
    settings = ClientSettings(deadline_ms=5000, failures_to_open=3, open_s=60)
    body = request(*utterances)
    with fake(0.01) as server, Client(server.url, settings) as client, ThreadPoolExecutor() as pool:
        is_killed = threading.Event()

        def ask() -> list[tuple[str, ...]]:
            degraded = []
            after_kill = 0
            while after_kill < 5:
                after_kill += is_killed.is_set()
                reply = client.rescore(body)
                (result,) = reply.results
                assert sorted(one.text for one in result.hypotheses) == sorted(TEXTS)
                if reply.degraded:
                    assert [one.text for one in result.hypotheses] == TEXTS
                degraded.append(reply.degraded)
            return degraded

        try:
            asking = [pool.submit(ask) for _ in range(4)]
            wait_until(lambda: client.stats.answered >= 20)
            server.process.kill()
        finally:
            is_killed.set()
        replies = [degraded for one in asking for degraded in one.result(PATIENCE_S)]
        stats = client.stats
    assert len(replies) == stats.calls
    assert stats.answered + sum(stats.fallbacks.values()) == stats.calls
    assert sum(stats.fallbacks.values()) >= 4
    assert set(stats.fallbacks) <= {"unavailable", "circuit_open"}
    assert () in replies
