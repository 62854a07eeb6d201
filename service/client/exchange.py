"""One call: what to send, how to treat an answer, when to try again. Does no I/O.

A call is a generator of steps: it yields what is to be done and is sent what came of it. So the
blocking and the asynchronous client differ in how a step is done and in nothing else.

Scoring is a pure function: whatever may have reached the service can be sent again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import httpx

from quantized_lm.errors import InputError
from service.client.asks import Ask, Missing, RefusedRequestError
from service.client.breaker import CircuitBreaker
from service.client.replies import (
    CIRCUIT_OPEN,
    DEADLINE,
    INVALID,
    INVALID_REPLY,
    OVERLOADED,
    REFUSED,
    UNAVAILABLE,
    InvalidReplyError,
    Json,
    Reply,
    problem_of,
)
from service.client.settings import Ambient, ClientSettings
from service.client.stats import Counts

logger = logging.getLogger(__name__)
ReplyT = TypeVar("ReplyT", bound=Reply)
T = TypeVar("T")
_PROBE_PATH = "/health/ready"
_OK = 200
_GATEWAY_TIMEOUT = 504
# What a status means, where its body is not the answer.
_REASONS: Mapping[int, str] = MappingProxyType(
    {
        **dict.fromkeys((400, 413, 415, 422), INVALID),
        **dict.fromkeys((401, 403, 404), REFUSED),
        429: OVERLOADED,
        **dict.fromkeys((500, 502, 503, 504), UNAVAILABLE),
    }
)
_RETRIED = frozenset((429, 500, 502, 503, 504))
# Reasons by which the service itself, as its problem details show, says that it is there.
_SIGNS_OF_LIFE = frozenset((DEADLINE, INVALID, OVERLOADED, REFUSED))


@dataclass(frozen=True)
class Send:
    """An HTTP request, which may take so long in all."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes
    timeout_s: float
    connect_timeout_s: float
    max_reply_bytes: int

    def arguments(self) -> dict[str, Any]:
        """Those of httpx's `stream`, timeouts apart."""
        return {
            "method": self.method,
            "url": self.url,
            "headers": self.headers,
            "content": self.content,
        }


@dataclass(frozen=True)
class Pause:
    """Time to let pass."""

    duration_s: float


@dataclass(frozen=True)
class Probe:
    """Steps to do beside the call, which does not wait for them.

    Attributes:
        steps: those.
        give_up: what to call instead where they cannot be done.
    """

    steps: Steps[None]
    give_up: Callable[[], None]


@dataclass(frozen=True)
class Renew:
    """Connections to leave to whoever is using them, and to make anew for the next request."""


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Attributes:
        call_id: to which call, where it says so in a header.
    """

    status: int
    retry_after: str | None
    content: bytes
    call_id: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why nothing was said."""

    reason: str
    detail: str
    may_retry: bool


Step = Send | Pause | Probe | Renew
Steps = Generator[Step, Answer | Failure | None, T]


@dataclass(frozen=True)
class _Verdict:
    """What an answer other than ours comes to; a pause of infinity is none that can be waited."""

    why: Missing
    may_retry: bool = False
    least_pause_s: float = 0.0
    is_foreign: bool = False


class _ForeignReplyError(InvalidReplyError):
    """It is to another request: words of another utterance, however well they fit."""


class Exchange:
    """The policy of one client.

    Raises:
        InputError: the URL is not one of HTTP.
    """

    def __init__(self, url: str, settings: ClientSettings, ambient: Ambient) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"url is {url!r}; need one like http://127.0.0.1:8080")
        self._url = url.rstrip("/")
        self._settings = settings
        self._ambient = ambient
        self._breaker = CircuitBreaker(
            failures_to_open=settings.failures_to_open, open_s=settings.open_s, clock=ambient.clock
        )
        self.counts = Counts()

    def call(self, ask: Ask[ReplyT], deadline_ms: float | None) -> Steps[ReplyT]:
        """The steps of one call; they return its reply.

        Raises:
            InputError: the deadline is not above 0.
            RefusedRequestError: the service finds the request wrong, and `on_invalid` is "raise".
        """
        wanted_ms = self._settings.deadline_ms if deadline_ms is None else deadline_ms
        if not 0 < wanted_ms < math.inf:
            raise InputError(
                f"deadline_ms is {wanted_ms}; need more than 0", pointer="/deadline_ms"
            )
        self.counts.add("calls")
        if self._breaker.is_open:
            if self._breaker.take_probe():
                yield Probe(self._probe(), self._give_up_probe)
            outcome: ReplyT | Missing = Missing(CIRCUIT_OPEN, "the service failed too often")
        else:
            outcome = yield from self._attempts(ask, self._ambient.clock() + wanted_ms / 1000)
        if not isinstance(outcome, Missing):
            self.counts.add("answered")
            return outcome
        first_pass = ask.first_pass(outcome)
        if (
            outcome.reason == INVALID
            and outcome.problem is not None
            and self._settings.on_invalid == "raise"
        ):
            self.counts.add("refused")
            raise RefusedRequestError(outcome.problem, first_pass)
        is_news = self.counts.add_fallback(outcome.reason) == 1
        logger.log(
            logging.WARNING if is_news else logging.DEBUG,
            "the first pass stands, %s: %s",
            outcome.reason,
            outcome.detail,
        )
        return first_pass

    def _attempts(self, ask: Ask[ReplyT], deadline_s: float) -> Steps[ReplyT | Missing]:
        """Try until there is an answer, or no time or hope for one."""
        request_id = f"req_{uuid.uuid4().hex}"
        failed: Missing | None = None
        for attempt in range(1, self._settings.max_attempts + 1):
            left_s = deadline_s - self._ambient.clock()
            if self._told_ms(left_s) < 1:
                break
            if attempt > 1:
                self.counts.add("retries")
            answer = yield self._post(ask, left_s, request_id)
            outcome = self._judge(ask, answer, request_id)
            if not isinstance(outcome, _Verdict):
                self._breaker.succeed()
                return outcome
            failed = outcome.why
            if outcome.is_foreign:  # and so would be all that come by that connection
                yield Renew()
            pause_s = outcome.least_pause_s + self._jitter_s(attempt)
            left_s = deadline_s - self._ambient.clock() - pause_s
            is_last = attempt == self._settings.max_attempts
            if not outcome.may_retry or is_last or self._told_ms(left_s) < 1:
                break
            yield Pause(pause_s)
        if failed is None:
            return Missing(DEADLINE, "the deadline leaves no time to ask")
        self._learn(failed)
        return failed

    def _learn(self, why: Missing) -> None:
        """Tell the breaker what a call that was sent came to."""
        if why.problem is not None and why.reason in _SIGNS_OF_LIFE:
            self._breaker.succeed()
        else:
            self._breaker.fail()

    def _told_ms(self, left_s: float) -> float:
        """What the service is told it has; below 1 it is not asked."""
        return left_s * 1000 - self._settings.network_allowance_ms

    def _jitter_s(self, attempt: int) -> float:
        """Full jitter: anything from 0 to a bound that doubles, so that clients part."""
        longest_ms: float = min(
            self._settings.backoff_ms * 2 ** (attempt - 1), self._settings.max_backoff_ms
        )
        return self._ambient.random() * longest_ms / 1000

    def _post(self, ask: Ask[ReplyT], left_s: float, request_id: str) -> Send:
        headers = {
            "Content-Type": "application/json",
            "X-Request-ID": request_id,
            "X-Call-ID": request_id,  # which no proxy puts its own in place of
            "X-Request-Timeout-Ms": str(int(self._told_ms(left_s))),
        }
        return self._send("POST", ask.path, ask.body, left_s, headers)

    def _send(
        self, method: str, path: str, content: bytes, timeout_s: float, headers: dict[str, str]
    ) -> Send:
        headers |= {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._settings.api_key is not None:
            headers["Authorization"] = f"Bearer {self._settings.api_key}"
        return Send(
            method,
            self._url + path,
            headers,
            content,
            timeout_s,
            min(timeout_s, self._settings.connect_timeout_ms / 1000),
            self._settings.max_reply_bytes,
        )

    def _judge(
        self, ask: Ask[ReplyT], answer: Answer | Failure | None, request_id: str
    ) -> ReplyT | _Verdict:
        if not isinstance(answer, Answer):
            failure = answer or Failure(UNAVAILABLE, "no answer", may_retry=False)
            return _Verdict(Missing(failure.reason, failure.detail), failure.may_retry)
        try:
            if answer.status != _OK:
                return _refusal(answer, request_id)
            body = _object(answer.content)
            _require_own(answer.call_id or body.get("id"), request_id)
            return ask.read(body)
        except InvalidReplyError as error:
            is_foreign = isinstance(error, _ForeignReplyError)
            return _Verdict(Missing(INVALID_REPLY, str(error)), is_foreign=is_foreign)

    def _probe(self) -> Steps[None]:
        """Ask whether the service is ready, and tell the breaker."""
        is_ready = False
        try:
            timeout_s = self._settings.probe_timeout_ms / 1000
            answer = yield self._send("GET", _PROBE_PATH, b"", timeout_s, {})
            is_ready = isinstance(answer, Answer) and answer.status == _OK
        finally:
            self._breaker.end_probe(is_ready=is_ready)

    def _give_up_probe(self) -> None:
        self._breaker.end_probe(is_ready=False)


def failure_of(error: Exception) -> Failure:
    """What became of a request whose sending raised."""
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, httpx.ConnectTimeout):
        return Failure(UNAVAILABLE, detail, may_retry=True)
    if isinstance(error, httpx.TimeoutException | TimeoutError | asyncio.TimeoutError):
        return Failure(DEADLINE, detail, may_retry=False)
    if isinstance(error, InvalidReplyError | httpx.DecodingError):
        return Failure(INVALID_REPLY, detail, may_retry=False)
    dropped = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
    return Failure(UNAVAILABLE, detail, may_retry=dropped)


def require_size(size_bytes: int, step: Send) -> None:
    """Pass an answer that is not too long.

    Raises:
        InvalidReplyError: it is.
    """
    if size_bytes > step.max_reply_bytes:
        raise InvalidReplyError(f"the answer has more than {step.max_reply_bytes} bytes")


def require_time(left_s: float) -> None:
    """Pass an answer that is still in time.

    Raises:
        TimeoutError: it is not.
    """
    if left_s < 0:
        raise TimeoutError("the answer was not over in time")


def _require_own(answered_id: object, request_id: str) -> None:
    """Pass an answer to this request.

    Raises:
        _ForeignReplyError: it is to another, or does not say.
    """
    if answered_id != request_id:
        raise _ForeignReplyError(
            f"the answer is to request {answered_id!r}; need {request_id}: whatever stands between "
            "must pass X-Request-ID or X-Call-ID on as it is"
        )


def _refusal(answer: Answer, request_id: str) -> _Verdict:
    """What an answer with an error status comes to.

    Raises:
        _ForeignReplyError: its problem is that of another request.
    """
    try:
        body = _object(answer.content)
    except InvalidReplyError:
        body = {}
    problem = problem_of(body)
    was_read = body.get("instance") != ""  # else the service had no id to name
    if problem is not None and "request_id" in body and was_read:
        _require_own(answer.call_id or body["request_id"], request_id)
    said = problem.detail if problem is not None else "without problem details"
    detail = f"{answer.status}: {said}"
    reason = _REASONS.get(answer.status, INVALID_REPLY)
    if answer.status == _GATEWAY_TIMEOUT and problem is not None:  # our own, and it has judged
        return _Verdict(Missing(DEADLINE, detail, problem))
    if reason in (INVALID, REFUSED) and (problem is None or not was_read):
        reason = INVALID_REPLY  # it is not the service that finds fault with what was asked
    least_pause_s = _seconds(answer.retry_after)
    may_retry = answer.status in _RETRIED and least_pause_s < math.inf
    return _Verdict(Missing(reason, detail, problem), may_retry, least_pause_s)


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header; infinite for a date or what is none, as it must not be ignored."""
    if retry_after is None:
        return 0.0
    text = retry_after.strip()
    return float(text) if text.isascii() and text.isdigit() else math.inf


def _object(content: bytes) -> Json:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidReplyError(f"the answer is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidReplyError("the answer is no JSON object")
    return body
