"""The stand-in for a decoder, against the app with the sample request that it is given."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.error import URLError
from urllib.request import OpenerDirector

import pytest
from anyio.from_thread import start_blocking_portal

from tests.deploy.files import DEPLOY, script
from tests.deploy.loopback import DEAD_PROXY, answering
from tests.fakes import spelling_loaded
from tests.service.serving import Caller, running

SAMPLE = (DEPLOY / "sample_request.json").read_bytes()


@pytest.fixture(scope="module")
def decoder() -> ModuleType:
    """deploy/decoder.py, which is a script and no part of a package."""
    return script(DEPLOY / "decoder.py")


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    """An app whose model takes real sentences."""
    app = running(spelling_loaded())
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(app) as started:
        yield Caller(portal, started[0])


def test_each_utterance_is_printed_with_its_best_text(
    decoder: ModuleType, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: Any, request: Any, timeout: float) -> io.BytesIO:  # noqa: ARG001 - urllib's
        assert request.full_url == "http://decoder.test/v1/rescore"
        return io.BytesIO(caller.post("/v1/rescore", request.data).content)

    monkeypatch.setattr(OpenerDirector, "open", ask)
    lines = decoder.decode("http://decoder.test", SAMPLE)
    utterances = json.loads(SAMPLE)["utterances"]
    assert [line.split(": ")[0] for line in lines] == [entry["id"] for entry in utterances]
    for line, entry in zip(lines, utterances, strict=True):
        text, rank = line.removesuffix(")").split(": ")[1].split(" (was ")
        assert entry["hypotheses"][int(rank) - 1]["text"] == text


def test_without_the_service_the_first_pass_stands(
    decoder: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise URLError("away")

    monkeypatch.setattr(OpenerDirector, "open", ask)
    first, *lines = decoder.decode("http://decoder.test", SAMPLE)
    assert "away" in first
    for line, entry in zip(lines, json.loads(SAMPLE)["utterances"], strict=True):
        assert line == f"{entry['id']}: {entry['hypotheses'][0]['text']} (first pass)"


def lines_for(decoder: ModuleType, monkeypatch: pytest.MonkeyPatch, reply: bytes) -> list[str]:
    monkeypatch.setattr(OpenerDirector, "open", lambda *_, **__: io.BytesIO(reply))
    lines: list[str] = decoder.decode("http://decoder.test", SAMPLE)
    return lines


def test_an_utterance_that_failed_keeps_its_first_pass_and_says_why(
    decoder: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = json.loads(SAMPLE)["utterances"]
    results = [{"id": entry["id"], "error": {"detail": "too long"}} for entry in utterances]
    lines = lines_for(decoder, monkeypatch, json.dumps({"results": results}).encode())
    assert lines == [
        f"{entry['id']}: {entry['hypotheses'][0]['text']} (first pass): too long"
        for entry in utterances
    ]


@pytest.mark.parametrize(
    "reply", [b"<html>", b"[]", b"{}", b'{"results": []}', b'{"results": [1, 2, 3, 4]}', b"\xff"]
)
def test_an_answer_of_something_else_leaves_the_first_pass(
    decoder: ModuleType, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    first, *lines = lines_for(decoder, monkeypatch, reply)
    assert first.startswith("no second pass: ")
    assert lines == decoder.first_pass(SAMPLE)


def test_a_proxy_of_the_machine_is_not_asked(
    decoder: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in DEAD_PROXY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(decoder.urllib.request, "_opener", None)  # made before there was one
    best = {"hypotheses": [{"text": "so", "input_rank": 2}]}
    utterances = json.loads(SAMPLE)["utterances"]
    results = [{"id": entry["id"], **best} for entry in utterances]
    with answering(json.dumps({"results": results}).encode()) as port:
        lines = decoder.decode(f"http://127.0.0.1:{port}", SAMPLE)
    assert lines == [f"{entry['id']}: so (was 2)" for entry in utterances]
