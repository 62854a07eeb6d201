"""Rescoring through a running server: lists out, `results` entries back, in order.

Talks the service's HTTP and nothing else of it; the standard library is enough.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from quantized_lm.cli.weighting import WeightOptions, parse_preset
from quantized_lm.errors import DataError
from quantized_lm.nbest import Utterance
from quantized_lm.scored import unranked_record
from quantized_lm.weights_file import read_weights, request_fields

Json = dict[str, object]
UTTERANCES_PER_REQUEST = 64  # the server's limit
BYTES_PER_REQUEST = 4 << 20  # half of the server's limit
IN_FLIGHT = 4
_TRIES = 6
_LONGEST_WAIT_S = 30.0
_TIMEOUT_S = 300.0
_BUSY = (429, 503)
_WRONG = (400, 413, 422)
_LATE = 504
_PLACE = re.compile(r"/utterances/(\d{1,9})(?=/)")


class _RefusedError(DataError):
    """The server will never take this request."""


class _LateError(DataError):
    """The server did not do this request in time; a smaller one it may."""


@dataclass(frozen=True)
class Server:
    """A server and what each request to it says beside its utterances.

    Attributes:
        api_key: sent as a bearer token; "" sends none.
        keeps_failed: a list that cannot be ranked keeps the decoder's order.
    """

    url: str
    settings: Mapping[str, object]
    api_key: str = field(default="", repr=False)
    keeps_failed: bool = False
    sleep: Callable[[float], None] = field(default=time.sleep)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise DataError(f"url is {self.url!r}; need one like http://127.0.0.1:8080")

    def rescore(self, utterances: list[Utterance]) -> list[Json]:
        """The `results` entries of one request, `ref` added, in the order of the utterances.

        A server that is too busy is asked again after the time it names, one that does not do all
        of them in time for half of them.

        Raises:
            DataError: the server is not there, refuses the request, or could not rank a list.
        """
        try:
            return self._rescored(utterances)
        except _LateError:
            if len(utterances) == 1:
                raise
            half = len(utterances) // 2
            return self.rescore(utterances[:half]) + self.rescore(utterances[half:])
        except _RefusedError as error:
            if not self.keeps_failed:
                raise
            if len(utterances) == 1:
                return [unranked_record(utterances[0], str(error))]
            return [record for one in utterances for record in self.rescore([one])]

    def _rescored(self, utterances: list[Utterance]) -> list[Json]:
        body = json.dumps(
            {
                **self.settings,
                "utterances": [_wire(utterance) for utterance in utterances],
                "options": {"on_deadline": "error"},  # a file holds scores, or is not written
            }
        ).encode()
        try:
            results = self._post(body).get("results")
        except _RefusedError as error:
            raise _RefusedError(_naming(utterances, str(error))) from None
        if not isinstance(results, list) or len(results) != len(utterances):
            raise DataError(f"{self.url}: answered without one result per utterance")
        return [
            self._checked(result, utterance)
            for result, utterance in zip(results, utterances, strict=True)
        ]

    def _post(self, body: bytes) -> Json:
        # Nobody waits for one list; the server cuts the time to the longest deadline it grants.
        headers = {
            "Content-Type": "application/json",
            "X-Request-Timeout-Ms": f"{1000.0 * _TIMEOUT_S:g}",
        }
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{self.url.rstrip('/')}/v1/rescore", data=body, headers=headers
        )
        # The server stands beside the decoder: what proxy the machine uses is not for it.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        attempt = 0
        while True:
            attempt += 1
            try:
                with direct.open(request, timeout=_TIMEOUT_S) as reply:
                    answer = json.load(reply)
                    return answer if isinstance(answer, dict) else {}
            except urllib.error.HTTPError as error:
                if error.code in _WRONG:
                    raise _RefusedError(f"{self.url}: {_problem(error)}") from None
                if error.code == _LATE:
                    raise _LateError(f"{self.url}: {_problem(error)}") from None
                if error.code not in _BUSY or attempt == _TRIES:
                    raise DataError(f"{self.url}: {_problem(error)}") from None
                self.sleep(_wait_s(error, attempt))
            except (OSError, ValueError) as error:
                raise DataError(f"{self.url}: no answer ({error}); is the server up?") from None

    def _checked(self, result: object, utterance: Utterance) -> Json:
        if not isinstance(result, dict) or result.get("id") != utterance.id:
            raise DataError(f"utterance {utterance.id!r}: got the result of another one")
        if "error" in result:
            detail = f"utterance {utterance.id!r}: {_detail(result['error'])}"
            if self.keeps_failed:
                return unranked_record(utterance, detail)
            raise DataError(detail)
        return result if utterance.ref is None else {**result, "ref": utterance.ref}


def rescore_all(server: Server, utterances: Iterable[Utterance]) -> Iterator[list[Json]]:
    """Results of all lists in order, a request at a time, with several requests in flight."""
    waiting: deque[Future[list[Json]]] = deque()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        try:
            for request in _requests(utterances):
                waiting.append(pool.submit(server.rescore, request))
                if len(waiting) > IN_FLIGHT:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def wire_settings(options: WeightOptions, model: str | None) -> Json:
    """The `model` or `lms` and `weights` of a request.

    Raises:
        DataError: a file and a preset were given, or the file is none of weights.
    """
    if options.file is not None and options.preset is not None:
        raise DataError("got --weights and --preset; give one of them")
    weights: dict[str, Any] = {}
    settings: dict[str, Any] = {"weights": weights}
    if model is not None:
        settings["model"] = model
    if options.preset is not None:
        weights["preset"], weights["parameters"] = parse_preset(options.preset)
    if options.file is not None:
        fields = request_fields(read_weights(options.file))
        settings = fields if "lms" in fields else {**settings, **fields}
        weights = settings["weights"]
    if options.lm_scale is not None:
        weights["lm_scale"] = options.lm_scale
        for lm in settings.get("lms", ()):
            del lm["lm_scale"]  # what an LM has of its own would come before
    weights.update(options.numbers)
    return settings


def _requests(utterances: Iterable[Utterance]) -> Iterator[list[Utterance]]:
    request: list[Utterance] = []
    size = 0
    for utterance in utterances:
        size_of_one = len(json.dumps(_wire(utterance)))
        full = len(request) == UTTERANCES_PER_REQUEST or size + size_of_one > BYTES_PER_REQUEST
        if request and full:
            yield request
            request, size = [], 0
        request.append(utterance)
        size += size_of_one
    if request:
        yield request


def _wire(utterance: Utterance) -> Json:
    return {
        "id": utterance.id,
        "final": utterance.final,
        "context": {"text": list(utterance.context)},
        "hypotheses": [
            {
                "text": hypothesis.text,
                "am_score": hypothesis.am_score,
                "graph_score": hypothesis.graph_score,
                "extra": dict(hypothesis.extra),
            }
            for hypothesis in utterance.hypotheses
        ],
    }


def _problem(error: urllib.error.HTTPError) -> str:
    try:
        return f"{error.code}: {_detail(json.load(error))}"
    except ValueError:
        return f"{error.code} {error.reason}"


def _naming(utterances: Sequence[Utterance], message: str) -> str:
    """A server's words with the ids of utterances for their places in the request."""

    def name(place: re.Match[str]) -> str:
        at = int(place[1])
        return f"utterance {utterances[at].id!r}: " if at < len(utterances) else place[0]

    return _PLACE.sub(name, message)


def _detail(problem: object) -> str:
    """The words of an RFC 9457 problem, with each pointer it names."""
    if not isinstance(problem, dict):
        return str(problem)
    listed = problem.get("errors")
    errors = listed if isinstance(listed, list) else []
    places = "; ".join(
        f"{item.get('pointer')}: {item.get('message')}" for item in errors if isinstance(item, dict)
    )
    return places or str(problem.get("detail") or problem.get("title"))


def _wait_s(error: urllib.error.HTTPError, attempt: int) -> float:
    named = error.headers.get("Retry-After", "")
    return min(float(named) if named.isdigit() else 2.0**attempt, _LONGEST_WAIT_S)
