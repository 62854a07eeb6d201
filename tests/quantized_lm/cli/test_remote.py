"""Rescoring through a server: order, retries, limits and faults, against one on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quantized_lm.cli import remote
from quantized_lm.cli.remote import Server, rescore_all, wire_settings
from quantized_lm.cli.weighting import WeightOptions
from quantized_lm.errors import DataError
from quantized_lm.nbest import Hypothesis, Utterance
from quantized_lm.scored import read_scored

from .conftest import Command

Reply = tuple[int, dict[str, str], Any]


def ranked(request: dict[str, Any]) -> Reply:
    """The input order, with a made-up LM score."""
    results = [
        {
            "id": utterance["id"],
            "changed": False,
            "degraded": ["deadline"] if utterance["id"] == "10-1" else [],
            "hypotheses": [
                {
                    "rank": rank,
                    "input_rank": rank,
                    "text": hypothesis["text"],
                    "score": -1.0,
                    "posterior": 0.5,
                    "components": {
                        "am": hypothesis["am_score"],
                        "graph": hypothesis["graph_score"],
                        "lm": {"tiny": -2.0},
                        "extra": hypothesis["extra"],
                    },
                    "num_words": 3,
                    "num_tokens": 4,
                    "num_chars": len(hypothesis["text"]),
                    "oov": [],
                }
                for rank, hypothesis in enumerate(utterance["hypotheses"], start=1)
            ],
        }
        for utterance in request["utterances"]
    ]
    return 200, {}, {"results": results}


@contextmanager
def serving(
    *first: Reply, timeouts: list[str] | None = None, keys: list[str | None] | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these replies first and ranks after; yields its address and requests.

    Args:
        timeouts: gets the X-Request-Timeout-Ms of each request. keys: its Authorization.
    """
    replies, requests = list(first), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(request)
            if timeouts is not None:
                timeouts.append(self.headers["X-Request-Timeout-Ms"])
            if keys is not None:
                keys.append(self.headers["Authorization"])
            status, headers, content = replies.pop(0) if replies else ranked(request)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def utterances(count: int, *, text: str = "a") -> list[Utterance]:
    return [Utterance(str(number), (Hypothesis(text, -1.0),), ref="a") for number in range(count)]


def test_results_come_in_order_in_requests_of_64() -> None:
    with serving() as (url, requests):
        results = list(rescore_all(Server(url, {}), utterances(64 * 6 + 5)))
    flat = [record for part in results for record in part]
    assert [record["id"] for record in flat] == [str(number) for number in range(389)]
    assert all(record["ref"] == "a" for record in flat)
    assert sorted(len(request["utterances"]) for request in requests) == [5] + [64] * 6


def test_large_lists_make_smaller_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BYTES_PER_REQUEST", 1000)
    with serving() as (url, requests):
        list(rescore_all(Server(url, {}), utterances(3, text="a" * 600)))
    assert [len(request["utterances"]) for request in requests] == [1, 1, 1]


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    waits: list[float] = []
    busy: Reply = (429, {"Retry-After": "3"}, {})
    with serving(busy, (503, {}, {})) as (url, requests):
        Server(url, {}, sleep=waits.append).rescore(utterances(1))
        assert waits == [3.0, 4.0]
        assert len(requests) == 3
    with serving(*[busy] * 6) as (url, _), pytest.raises(DataError, match="429: None"):
        Server(url, {}, sleep=waits.append).rescore(utterances(1))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (422, {}, {"detail": "no", "errors": [{"pointer": "/weights/x", "message": "bad"}]}),
            "422: /weights/x: bad",
        ),
        ((404, {}, {"title": "t", "detail": "no such model"}), "404: no such model"),
        ((500, {}, b"<html>"), "500 Internal Server Error"),
        ((500, {}, ["oops"]), "500: "),
        ((200, {}, {"results": []}), "without one result per utterance"),
        ((200, {}, []), "without one result per utterance"),
        ((200, {}, b"not json"), "no answer"),
        ((200, {}, {"results": [{"id": "x"}]}), "got the result of another one"),
        (
            (200, {}, {"results": [{"id": "0", "error": {"detail": "too long"}}]}),
            "utterance '0': too long",
        ),
    ],
)
def test_what_a_server_refuses_is_said(reply: Reply, message: str) -> None:
    with serving(reply) as (url, _), pytest.raises(DataError, match=message):
        Server(url, {}).rescore(utterances(1))


def test_the_utterance_that_a_server_refuses_is_named() -> None:
    items = [
        {"pointer": f"/utterances/{at}/hypotheses/0/am_score", "message": "too low"}
        for at in (1, 7)
    ]
    with serving((422, {}, {"errors": items})) as (url, _), pytest.raises(DataError) as refused:
        Server(url, {}).rescore([*utterances(1), Utterance("a-2", (Hypothesis("a", -1e13),))])
    assert "422: utterance 'a-2': /hypotheses/0/am_score: too low; /utter" in str(refused.value)


def test_a_fault_in_one_request_ends_all(run: Command, lists: Path) -> None:
    with serving((422, {}, {"detail": "no"})) as (url, _):
        result = run("rescore", lists, lists.with_name("out.jsonl"), "--url", url)
    assert result.exit_code == 2
    assert not lists.with_name("out.jsonl").exists()


def test_what_is_not_done_in_time_is_asked_for_in_halves() -> None:
    late: Reply = (504, {}, {"detail": "the deadline passed"})
    with serving(late, late) as (url, requests):
        results = Server(url, {}).rescore(utterances(5))
    assert [len(request["utterances"]) for request in requests] == [5, 2, 1, 1, 3]
    assert [record["id"] for record in results] == ["0", "1", "2", "3", "4"]


def test_what_a_server_refuses_may_keep_the_decoders_order() -> None:
    refused: Reply = (422, {}, {"detail": "no"})
    failed: Reply = (200, {}, {"results": [{"id": "1", "error": {"detail": "too long"}}]})
    # All three are refused; alone the first is ranked, the second fails, the third is refused.
    with serving(refused, ranked({"utterances": [_wire("0")]}), failed, refused) as (url, requests):
        results = Server(url, {}, keeps_failed=True).rescore(utterances(3))
    assert [len(request["utterances"]) for request in requests] == [3, 1, 1, 1]
    assert [record["degraded"] for record in results] == [[], ["failed"], ["failed"]]
    assert [record["id"] for record in results] == ["0", "1", "2"]
    assert results[1]["detail"] == "utterance '1': too long"
    assert str(results[2]["detail"]).endswith("422: no")
    with serving((401, {}, {"detail": "no key"})) as (url, _), pytest.raises(DataError, match="no"):
        Server(url, {}, keeps_failed=True).rescore(utterances(1))


def _wire(name: str) -> dict[str, Any]:
    hypothesis = {"text": "a", "am_score": -1.0, "graph_score": None, "extra": {}}
    return {"id": name, "hypotheses": [hypothesis]}


def test_the_key_of_the_environment_is_sent(
    run: Command, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str | None] = []
    monkeypatch.setenv("SECONDPASS_API_KEY", "sp_secret")
    with serving(keys=keys) as (url, _):
        run("rescore", lists, lists.with_name("out.jsonl"), "--url", url)
        monkeypatch.delenv("SECONDPASS_API_KEY")
        run("rescore", lists, lists.with_name("out.jsonl"), "--url", url)
    assert keys == ["Bearer sp_secret", None]


def test_a_server_that_is_not_there_is_named() -> None:
    with serving() as (url, _):
        pass
    with pytest.raises(DataError, match="is the server up"):
        Server(url, {}).rescore(utterances(1))
    with pytest.raises(DataError, match="need one like http"):
        Server("ftp://x", {})


def test_the_command_writes_the_same_shape_and_says_what_degraded(
    run: Command, lists: Path
) -> None:
    target = lists.with_name("out.jsonl")
    with serving() as (url, requests):
        result = run("rescore", lists, target, "--url", url, "--model", "tiny", "--am-scale", "2")
    assert result.exit_code == 0, result.output
    assert "1 utterances came back degraded" in result.stderr
    assert requests[0]["model"] == "tiny"
    assert requests[0]["weights"] == {"am_scale": 2.0}
    assert len(list(read_scored(target))) == 6


def test_weight_options_become_the_requests_fields(tmp_path: Path) -> None:
    preset = WeightOptions(preset="nemo:alpha=1,beta=2", lm_scale=0.5)
    assert wire_settings(preset, None) == {
        "weights": {
            "preset": "nemo",
            "parameters": {"alpha": 1.0, "beta": 2.0},
            "lm_scale": 0.5,
        }
    }
    path = tmp_path / "weights.json"
    path.write_text('{"weights": {"lm_scales": {"tiny": 0.75}, "word_bonus": 1}}')
    settings = wire_settings(WeightOptions(file=path), "other")
    assert settings["lms"] == [{"model": "tiny", "lm_scale": 0.75}]
    assert "model" not in settings
    scaled = wire_settings(WeightOptions(file=path, lm_scale=2.0), None)
    assert scaled["lms"] == [{"model": "tiny"}]
    assert isinstance(scaled["weights"], dict)
    assert scaled["weights"]["lm_scale"] == 2.0
    path.write_text('{"weights": {"word_bonus": 1}}')
    without = wire_settings(WeightOptions(file=path), "other")
    assert isinstance(without["weights"], dict)
    assert (without["model"], without["weights"]["lm_scale"]) == ("other", 0.0)
    with pytest.raises(DataError, match="give one of them"):
        wire_settings(WeightOptions(file=path, preset="nemo"), None)


def test_no_list_of_a_file_is_left_unscored_in_silence() -> None:
    timeouts: list[str] = []
    utterance = Utterance(id="a", hypotheses=(Hypothesis("the cat", am_score=-1.0),))
    late: Reply = (504, {}, {"detail": "the deadline passed", "code": "deadline_exceeded"})
    with serving(late, timeouts=timeouts) as (url, requests):
        server = Server(url, {})
        with pytest.raises(DataError, match="504: the deadline passed"):
            server.rescore([utterance])
        server.rescore([utterance])
    assert [request["options"] for request in requests] == [{"on_deadline": "error"}] * 2
    assert timeouts == ["300000", "300000"]  # not the server's default, which is a decoder's
