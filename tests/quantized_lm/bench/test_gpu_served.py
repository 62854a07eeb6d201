"""Asking a server at a rate: what counts as a request's time."""

from __future__ import annotations

import json
import threading
import time

import pytest

from quantized_lm.bench import gpu_served
from quantized_lm.bench.gpu_served import ServiceOptions
from quantized_lm.bench.workers import WorkerError

TIMING = {"queue_ms": 1.0, "tokenize_ms": 2.0, "forward_ms": 4.0, "combine_ms": 8.0}
CONTENT = json.dumps({"timing": {**TIMING, "total_ms": 16.0}, "usage": {"tree_nodes": 3}}).encode()


class Stub(gpu_served._Client):
    """A server that answers one request at a time, after so many seconds."""

    def __init__(self, wait_s: float, status: int = 200) -> None:
        super().__init__("http://127.0.0.1:1")
        self.wait_s, self.status = wait_s, status
        self.asked: list[bytes | None] = []
        self.lock = threading.Lock()

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        assert (method, path) == ("POST", "/v1/rescore")
        with self.lock:
            self.asked.append(body)
            time.sleep(self.wait_s)
        return self.status, CONTENT


@pytest.mark.real_clock
def test_a_request_waits_from_when_it_was_due() -> None:
    client = Stub(0.02)
    options = ServiceOptions(seconds=0.05, senders=1)
    replies = gpu_served._open_loop(client, [b"one", b"two"], 200.0, options)
    assert client.asked == [b"one", b"two"] * 5
    # Due every 5 ms and answered every 20: each waits for all before it.
    walls = [reply.wall_ms for reply in replies]
    assert walls == sorted(walls)
    assert walls[-1] > 10 * 20 - 9 * 5 - 5


def test_refusals_are_counted_and_not_timed() -> None:
    good = [Stub(0.0).ask(b"") for _ in range(3)]
    bad = Stub(0.0, status=429).ask(b"")
    summary = gpu_served._summary("load", 7.0, [*good, bad])
    assert (summary.rate, summary.answered, summary.refused) == (7.0, 3, 1)
    medians = {stage.stage: stage.median_ms for stage in summary.stages}
    assert {name: medians[name] for name in ("queue", "tokenize", "forward", "combine")} == {
        name.removesuffix("_ms"): value for name, value in TIMING.items()
    }
    assert medians["other"] == 1.0
    assert medians["http"] == medians["wall"] - 16.0
    assert gpu_served._summary("load", 7.0, [bad]).stages == ()
    with pytest.raises(WorkerError, match="429"):
        gpu_served._answered(bad)


def test_the_time_to_load_is_read_from_the_metrics() -> None:
    text = '# HELP x y\nrescore_model_load_seconds{model="b"} 1.5e+00\nother{model="b"} 9.0\n'
    assert gpu_served._load_s(text) == 1.5
