"""The log: text or JSON lines, written by a thread of its own, so that no request waits for a disk.

Every line that belongs to a request has its id, and its trace's where there is one. What was sent
is personal data: messages of exceptions may quote it and are left out unless a setting asks.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import queue
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter
from starlette.datastructures import Headers

from service.settings import Settings

NAMES = ("service", "quantized_lm", "uvicorn")  # the loggers that `log_level` is about
CAPACITY = 10_000  # lines that may wait for the disk; further ones are dropped and counted
FLUSH_S = 2.0  # time for the lines that are left when the server ends
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


@dataclass(frozen=True)
class RequestIds:
    """What the lines of one request are found by; a trace id is empty where nothing is traced."""

    request_id: str
    trace_id: str = ""


REQUEST: ContextVar[RequestIds | None] = ContextVar("REQUEST", default=None)


def request_id_of(headers: Headers) -> str:
    """The client's id if it is 1 to 128 printable ASCII characters, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{os.urandom(16).hex()}"


def call_id_of(headers: Headers) -> str | None:
    """What is echoed to the client as it is, if it could be a request's id.

    A proxy may put its own id in the place of a request's, which then tells a client nothing.
    """
    given = headers.get("x-call-id", "")
    return given if _REQUEST_ID.fullmatch(given) else None


class TextLines(logging.Formatter):
    """Lines for a terminal."""

    def __init__(self, *, shows_messages: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s%(ids)s")
        self._shows_messages = shows_messages

    def format(self, record: logging.LogRecord) -> str:
        """One record; ids come last, in brackets."""
        ids: RequestIds | None = getattr(record, "request", None)
        own = copy.copy(record)
        own.exc_text = None  # another handler's formatter may have left the whole traceback there
        own.ids = "" if ids is None else f" [{' '.join(_fields(ids).values())}]"
        return super().format(own)

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        """The traceback of an exception."""
        return _traceback(ei, shows_messages=self._shows_messages)


class JsonLines(JsonFormatter):
    """One JSON object per line: timestamp, level, logger, message, request_id, further fields."""

    def __init__(self, *, shows_messages: bool) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "traceback"},
            timestamp=True,
        )
        self._shows_messages = shows_messages

    def add_fields(
        self,
        log_data: dict[str, object],
        record: logging.LogRecord,
        message_dict: dict[str, object],
    ) -> None:
        """The fields of one record."""
        super().add_fields(log_data, record, message_dict)
        for name in ("color_message", "taskName"):  # uvicorn's message again, for terminals
            log_data.pop(name, None)
        ids = log_data.pop("request", None)
        if isinstance(ids, RequestIds):
            log_data.update(_fields(ids))

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        """The traceback of an exception."""
        return _traceback(ei, shows_messages=self._shows_messages)


class BackgroundHandler(logging.Handler):
    """Writes lines on its own thread. One that cannot be taken or written is lost and counted.

    Args:
        stream: where lines go.
        on_failure: called for each line that is lost.
        capacity: lines that may wait.
    """

    def __init__(
        self, stream: TextIO, on_failure: Callable[[], object], capacity: int = CAPACITY
    ) -> None:
        super().__init__()
        self._stream = stream
        self._on_failure = on_failure
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record with the ids of the request that it belongs to."""
        if _is_repeated(record):
            return
        if (ids := REQUEST.get()) is not None:
            record.request = ids
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._on_failure()

    def close(self) -> None:
        """Write what is left, for as long as that takes but no longer than FLUSH_S."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=FLUSH_S)
        self._thread.join(FLUSH_S)
        super().close()

    def _work(self) -> None:
        while (record := self._waiting.get()) is not None:
            try:
                self._stream.write(self.format(record) + "\n")
                self._stream.flush()
            # A full or closed disk, a closed stream, a message that does not fit its arguments.
            except (OSError, ValueError, TypeError, LookupError):
                self._on_failure()


@contextlib.contextmanager
def logging_to(
    stream: TextIO, settings: Settings, on_failure: Callable[[], object]
) -> Iterator[BackgroundHandler]:
    """Log to a stream, as the settings say, until the context ends.

    Args:
        stream: where lines go.
        settings: `log_level`, `log_format` and `log_text`.
        on_failure: called for each line that is lost.
    """
    is_text = settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())
    make = TextLines if is_text else JsonLines
    handler = BackgroundHandler(stream, on_failure)
    handler.setFormatter(make(shows_messages=settings.log_text))
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(settings.log_level.upper())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(capture=True)  # libraries' warnings are lines like any other
    try:
        yield handler
    finally:
        logging.captureWarnings(capture=False)
        logging.getLogger().removeHandler(handler)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        handler.close()


ON_PURPOSE = (503, 504)  # of a server that is not ready, goes away or was given too little time


class RequestLog:
    """One line for each request that deserves one.

    Args:
        logs_all: whether every request does, not only those that failed or were slow.
        slow_ms: from when on a request is slow.
    """

    def __init__(self, *, logs_all: bool = False, slow_ms: float = 1000.0) -> None:
        self._logs_all = logs_all
        self._slow_ms = slow_ms
        self._logger = logging.getLogger("service.requests")

    def write(
        self, *, method: str, route: str, status: int, seconds: float, state: Mapping[str, object]
    ) -> None:
        """Log one request that is over, if it failed, was slow, or all are logged.

        Args:
            method: of the request.
            route: the path's template.
            status: of the answer.
            seconds: from its first byte to its last.
            state: what the route left behind: `model`, and `timing` with milliseconds by stage.
        """
        milliseconds = 1000.0 * seconds
        has_failed, is_slow = status >= 500, milliseconds >= self._slow_ms
        if not (has_failed or is_slow or self._logs_all):
            return
        if has_failed and status not in ON_PURPOSE:
            level = logging.ERROR
        else:
            level = logging.WARNING if has_failed or is_slow else logging.INFO
        fields: dict[str, object] = {
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(milliseconds, 3),
        }
        fields |= {name: state[name] for name in ("model", "timing") if name in state}
        self._logger.log(
            level,
            "%s %s %d in %.1f ms%s",
            method,
            route,
            status,
            milliseconds,
            " (slow)" if is_slow else "",
            extra=fields,
        )


def _is_repeated(record: logging.LogRecord) -> bool:
    """Whether uvicorn tells of an exception that was logged where it was answered."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return False
    was_logged = vars(error).setdefault("was_logged", False)
    vars(error)["was_logged"] = True
    return record.name == "uvicorn.error" and was_logged


def _fields(ids: RequestIds) -> dict[str, str]:
    fields = {"request_id": ids.request_id}
    return {**fields, "trace_id": ids.trace_id} if ids.trace_id else fields


def _traceback(exc_info: ExcInfo, *, shows_messages: bool) -> str:
    """The traceback of an exception and its causes, oldest first, with or without messages."""
    error = exc_info[1]
    if error is None:
        return ""
    if shows_messages:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nthen\n".join(_frames(one) for one in reversed(chain))


def _frames(error: BaseException) -> str:
    within = [_frames(one) for one in getattr(error, "exceptions", ())]
    own = "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__
    return "\nwithin\n".join([*within, own])
