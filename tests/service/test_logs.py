"""The log: its lines, what never stands in them, and disks that are full or slow."""

from __future__ import annotations

import errno
import io
import json
import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service import server
from service.logs import (
    FLUSH_S,
    REQUEST,
    BackgroundHandler,
    JsonLines,
    RequestIds,
    RequestLog,
    logging_to,
)
from service.settings import Settings
from tests.fakes import TableModel, fake_loaded
from tests.service.serving import Json, request, running, utterance

CANARY = "heliotrope"


class FullDisk(io.StringIO):
    """A stream on a disk without space."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True


def _lines(stream: io.StringIO) -> list[Json]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _logged(log: Callable[[logging.Logger], object], **settings: Any) -> list[Json]:
    """What one call of a logger of ours writes."""
    stream, lost = io.StringIO(), list[int]()
    with logging_to(stream, Settings(log_format="json", **settings), lambda: lost.append(1)):
        log(logging.getLogger("service.test"))
    assert not lost
    return _lines(stream)


def _fail() -> None:
    try:
        dict[str, int]()[f"the cat {CANARY}"]
    except KeyError as error:
        raise ValueError(f"cannot score {CANARY}") from error


def test_a_json_line_has_level_logger_time_message_and_ids() -> None:
    token = REQUEST.set(RequestIds("req_1", "ab" * 16))
    try:
        (line,) = _logged(lambda logger: logger.warning("%d of %d", 1, 2, extra={"status": 503}))
    finally:
        REQUEST.reset(token)
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "WARNING",
        "logger": "service.test",
        "message": "1 of 2",
        "request_id": "req_1",
        "trace_id": "ab" * 16,
        "status": 503,
    }


def test_uvicorn_writes_through_the_same_formatter() -> None:
    extra = {"color_message": "\x1b[36mStarted\x1b[0m"}
    (line,) = _logged(lambda _: logging.getLogger("uvicorn.error").info("Started", extra=extra))
    assert line.keys() == {"timestamp", "level", "logger", "message"}


def test_uvicorn_does_not_repeat_an_exception_that_was_answered() -> None:
    error, other = KeyError("a"), KeyError("b")

    def log(logger: logging.Logger) -> None:
        for name, one in (("engine", error), ("errors", error), ("", error), ("", other)):
            where = logging.getLogger("uvicorn.error") if name == "" else logger.getChild(name)
            where.error("failed", exc_info=one)

    logged = [line["logger"] for line in _logged(log)]
    assert logged == ["service.test.engine", "service.test.errors", "uvicorn.error"]


def test_the_level_is_the_settings_and_other_libraries_only_warn() -> None:
    def log(logger: logging.Logger) -> None:
        logger.info("kept out")
        logger.error("kept in")
        logging.getLogger("httpx").info("kept out")

    assert [line["message"] for line in _logged(log, log_level="warning")] == ["kept in"]


@pytest.mark.parametrize(
    ("stream", "log_format", "is_json"),
    [
        (io.StringIO(), "auto", True),
        (Terminal(), "auto", False),
        (Terminal(), "json", True),
        (io.StringIO(), "text", False),
    ],
)
def test_auto_is_text_on_a_terminal_and_json_elsewhere(
    stream: io.StringIO, log_format: Any, is_json: bool
) -> None:
    token = REQUEST.set(RequestIds("req_1"))
    try:
        with logging_to(stream, Settings(log_format=log_format), lambda: None):
            logging.getLogger("service.test").error("a line")
    finally:
        REQUEST.reset(token)
    written = stream.getvalue()
    assert written.startswith("{") == is_json
    assert is_json or written.endswith("ERROR   service.test: a line [req_1]\n")


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("log_text", [False, True])
def test_a_traceback_shows_where_and_its_messages_only_if_wanted(
    log_format: Any, log_text: bool
) -> None:
    stream = io.StringIO()
    with logging_to(stream, Settings(log_format=log_format, log_text=log_text), lambda: None):
        try:
            _fail()
        except ValueError:
            logging.getLogger("service.test").exception("failed")
    written = stream.getvalue()
    assert "in _fail" in written
    assert written.index("KeyError") < written.index("ValueError")
    assert (f"cannot score {CANARY}" in written) == log_text


def test_a_group_of_exceptions_shows_each() -> None:
    class SeveralError(Exception):
        exceptions = (KeyError(CANARY), OSError(CANARY))

    (line,) = _logged(lambda logger: logger.error("failed", exc_info=SeveralError()))
    assert [part.strip() for part in line["traceback"].split("within")] == [
        "KeyError",
        "OSError",
        SeveralError.__qualname__,
    ]


def test_a_server_logs_to_stderr_as_its_settings_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda _: logging.getLogger("uvicorn.error").info("here")
    )
    server.serve(Settings(models=(Path("a"),)))
    assert json.loads(capsys.readouterr().err)["message"] == "here"
    server.serve(Settings(models=(Path("a"),), log_level="warning"))
    assert capsys.readouterr().err == ""


@pytest.mark.anyio
async def test_a_full_disk_costs_lines_and_never_an_answer() -> None:
    async with running(access_log=True) as (client, app):
        lost = app.state.core.metrics.log_failures
        with logging_to(FullDisk(), Settings(), lost.inc):
            assert (await client.post("/v1/rescore", json=request())).status_code == 200
        assert "rescore_log_failures_total 1.0" in (await client.get("/metrics")).text


def test_a_line_that_does_not_fit_its_arguments_costs_only_itself() -> None:
    stream, lost = io.StringIO(), list[int]()
    handler = BackgroundHandler(stream, lambda: lost.append(1))
    handler.setFormatter(JsonLines(shows_messages=False))
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    handler.handle(logging.makeLogRecord({"msg": "next"}))
    handler.close()
    assert len(lost) == 1
    assert [line["message"] for line in _lines(stream)] == ["next"]


def test_a_disk_that_hangs_makes_nobody_wait() -> None:
    is_stuck, gate, lost = threading.Event(), threading.Event(), list[int]()

    class Hanging(io.StringIO):
        def write(self, text: str) -> int:
            is_stuck.set()
            gate.wait(FLUSH_S)
            return super().write(text)

    stream = Hanging()
    handler = BackgroundHandler(stream, lambda: lost.append(1), capacity=1)
    handler.setFormatter(JsonLines(shows_messages=False))
    try:
        handler.handle(logging.makeLogRecord({"msg": "first"}))
        assert is_stuck.wait(FLUSH_S)
        for _ in range(4):
            handler.handle(logging.makeLogRecord({"msg": "more"}))
        assert len(lost) == 3
    finally:
        gate.set()
        handler.close()
    assert [line["message"] for line in _lines(stream)] == ["first", "more"]


async def _answered(model: TableModel | None = None, **settings: Any) -> list[Json]:
    """What a server with these settings logs of one request that holds the canary."""
    stream = io.StringIO()
    with logging_to(stream, Settings(log_format="json"), lambda: None):
        async with running(fake_loaded(model=model), **settings) as (client, _):
            body = request(utterance(f"the cat {CANARY}", "a cat"))
            await client.post("/v1/rescore", json=body, headers={"X-Request-ID": "r1"})
    assert CANARY not in stream.getvalue()
    return _lines(stream)


@pytest.mark.anyio
async def test_a_request_that_went_well_is_not_logged() -> None:
    assert await _answered() == []


@pytest.mark.anyio
async def test_every_request_is_logged_where_that_is_asked_for() -> None:
    (line,) = await _answered(access_log=True)
    assert line["level"] == "INFO"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/rescore", 200)
    assert (line["model"], line["request_id"]) == ("tiny", "r1")
    assert line["duration_ms"] >= line["timing"]["total_ms"] > 0.0


@pytest.mark.parametrize(("status", "level"), [(500, "ERROR"), (503, "WARNING"), (504, "WARNING")])
def test_what_a_server_says_on_purpose_is_no_error_of_the_log(
    status: int, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    RequestLog().write(method="GET", route="/health/ready", status=status, seconds=0.0, state={})
    assert [record.levelname for record in caplog.records] == [level]


@pytest.mark.anyio
async def test_a_slow_request_is_logged() -> None:
    (line,) = await _answered(slow_request_ms=1e-6)
    assert (line["level"], line["status"]) == ("WARNING", 200)
    assert line["message"].endswith("(slow)")


@pytest.mark.anyio
async def test_a_failed_request_is_logged_with_its_cause_and_without_what_was_sent() -> None:
    lines = await _answered(TableModel(error=RuntimeError(f"no kernel for {CANARY}")))
    assert all(line["level"] == "ERROR" for line in lines)
    own = [line for line in lines if line.get("request_id") == "r1"]
    assert any("RuntimeError" in line.get("traceback", "") for line in own)
    assert any(line.get("status") == 500 for line in own)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [
        f'{{"utterances": "{CANARY}"}}',
        f'{{"utterances": [{{"hypotheses": [{{"text": 1, "{CANARY}": 2}}]}}]}}',
        f'{{"{CANARY}"',
    ],
)
async def test_a_refused_request_is_not_quoted(body: str) -> None:
    stream = io.StringIO()
    with logging_to(stream, Settings(log_format="json"), lambda: None):
        async with running(access_log=True) as (client, _):
            headers = {"Content-Type": "application/json"}
            response = await client.post("/v1/rescore", content=body, headers=headers)
    assert 400 <= response.status_code < 500
    assert [line["status"] for line in _lines(stream)] == [response.status_code]
    assert CANARY not in stream.getvalue()


def test_a_librarys_warning_is_a_line_of_the_log() -> None:
    stream = io.StringIO()
    with warnings.catch_warnings(), logging_to(stream, Settings(log_format="json"), pytest.fail):
        warnings.simplefilter("always")
        warnings.warn("an odd pickle", stacklevel=1)
    (line,) = stream.getvalue().splitlines()
    assert "an odd pickle" in json.loads(line)["message"]
    assert json.loads(line)["level"] == "WARNING"
