"""What is sent, how its answer is read, and what stands in for an answer. Does no I/O.

Whatever is wrong with a request before it is sent is the caller's and raises at once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from quantized_lm.errors import InputError
from service.client.replies import (
    INVALID,
    Hypothesis,
    InvalidReplyError,
    Json,
    LatticeReply,
    Problem,
    Reply,
    RescoredList,
    RescoreReply,
    ScoredText,
    ScoreReply,
    names,
    number,
    objects,
    problem_of,
    ranked,
)

ReplyT_co = TypeVar("ReplyT_co", bound=Reply, covariant=True)
_CONTENT = MappingProxyType(
    {
        "k2-json": "lattice",
        **dict.fromkeys(("k2-text", "kaldi-text", "htk", "openfst-text"), "text"),
        **dict.fromkeys(("k2-safetensors", "k2-pt", "kaldi-binary"), "base64"),
    }
)


@dataclass(frozen=True)
class Missing:
    """Why there is no answer: `Reply` has the same fields."""

    reason: str
    detail: str = ""
    problem: Problem | None = None

    def fields(self) -> dict[str, Any]:
        """Those of a reply."""
        return {"degraded": (self.reason,), "detail": self.detail, "problem": self.problem}


class Ask(Protocol[ReplyT_co]):
    """One request."""

    @property
    def path(self) -> str:
        """Of the route."""

    @property
    def body(self) -> bytes:
        """JSON."""

    def read(self, body: Json) -> ReplyT_co:
        """The service's answer.

        Raises:
            InvalidReplyError: it is none to this request.
        """

    def first_pass(self, why: Missing) -> ReplyT_co:
        """The reply without the service."""


class RefusedRequestError(InputError):
    """The service finds the request wrong; another try would be refused as well.

    Attributes:
        problem: what it says.
        first_pass: the reply that `on_invalid="first_pass"` would have given.
    """

    def __init__(self, problem: Problem, first_pass: Reply) -> None:
        pointer, message = problem.errors[0] if problem.errors else ("", problem.detail)
        at = f"{pointer}: " if pointer else ""
        super().__init__(f"{problem.status} {problem.code}: {at}{message}", pointer=pointer)
        self.problem = problem
        self.first_pass = first_pass


@dataclass(frozen=True)
class RescoreAsk:
    """N-best lists."""

    body: bytes
    lists: Sequence[Json]
    n_best: int | None
    path: str = "/v1/rescore"

    def read(self, body: Json) -> RescoreReply:
        """As Ask."""
        results = objects(body, "results", len(self.lists))
        lists = tuple(
            self._read_one(sent, result) for sent, result in zip(self.lists, results, strict=True)
        )
        return RescoreReply(body=body, results=lists)

    def first_pass(self, why: Missing) -> RescoreReply:
        """As Ask."""
        results = tuple(self._own_order(one, why.reason, None) for one in self.lists)
        return RescoreReply(**why.fields(), results=results)

    def _read_one(self, sent: Json, result: Json) -> RescoredList:
        if "error" in result:
            problem = problem_of(result["error"])
            if problem is None:
                raise InvalidReplyError("an error is no problem details")
            return self._own_order(sent, INVALID, problem)
        texts = [hypothesis["text"] for hypothesis in sent["hypotheses"]]
        count = self._count(texts)
        order = ranked(objects(result, "hypotheses", count), texts, count)
        return RescoredList(
            sent.get("id"), order, order[0].input_rank != 1, names(result, "degraded")
        )

    def _own_order(self, sent: Json, reason: str, problem: Problem | None) -> RescoredList:
        own = [
            Hypothesis(hypothesis["text"], input_rank=rank, fields=hypothesis)
            for rank, hypothesis in enumerate(sent["hypotheses"], start=1)
        ]
        hypotheses = tuple(own[: self._count(own)])
        return RescoredList(
            sent.get("id"), hypotheses, changed=False, degraded=(reason,), problem=problem
        )

    def _count(self, sent: Sequence[object]) -> int:
        return len(sent) if self.n_best is None else min(self.n_best, len(sent))


@dataclass(frozen=True)
class LatticeAsk:
    """One lattice."""

    body: bytes
    own: Sequence[str]
    path: str = "/v1/rescore/lattice"

    def read(self, body: Json) -> LatticeReply:
        """As Ask."""
        (result,) = objects(body, "results", 1)
        if "error" in result:
            raise InvalidReplyError("the error of the only lattice came with status 200")
        found = result.get("hypotheses")
        hypotheses = objects(result, "hypotheses", len(found) if isinstance(found, list) else 0)
        if not hypotheses or not all(isinstance(one.get("text"), str) for one in hypotheses):
            raise InvalidReplyError("hypotheses without a text")
        lattice = result.get("lattice")
        return LatticeReply(
            degraded=names(result, "degraded"),
            body=body,
            hypotheses=tuple(
                Hypothesis(one["text"], number(one, "score"), number(one, "posterior"), fields=one)
                for one in hypotheses
            ),
            is_exact=result.get("exact") is True,
            cuts=names(result, "cuts"),
            lattice=lattice if isinstance(lattice, Mapping) else None,
        )

    def first_pass(self, why: Missing) -> LatticeReply:
        """As Ask."""
        return LatticeReply(**why.fields(), hypotheses=tuple(map(Hypothesis, self.own)))


@dataclass(frozen=True)
class ScoreAsk:
    """Texts."""

    body: bytes
    texts: Sequence[str]
    path: str = "/v1/score"

    def read(self, body: Json) -> ScoreReply:
        """As Ask."""
        scored = []
        for text, one in zip(self.texts, objects(body, "results", len(self.texts)), strict=True):
            log_prob = number(one, "log_prob")
            if one.get("text") != text or log_prob is None:
                raise InvalidReplyError("a result is not of the text that was sent")
            scored.append(ScoredText(text, log_prob, one))
        return ScoreReply(body=body, results=tuple(scored))

    def first_pass(self, why: Missing) -> ScoreReply:
        """As Ask."""
        return ScoreReply(**why.fields(), results=tuple(map(ScoredText, self.texts)))


def ask_rescore(asked: Json | Sequence[Json], fields: Json) -> RescoreAsk:
    """A request of n-best lists: a whole body, or its utterances and further fields of it.

    Raises:
        InputError: there is a list without a text in each hypothesis, or JSON cannot say it.
    """
    body = _body(asked if isinstance(asked, Mapping) else {"utterances": asked}, fields)
    lists = body.get("utterances")
    if not _is_list(lists) or not lists:
        raise InputError("utterances is not a list with entries; need one", pointer="/utterances")
    for index, one in enumerate(lists):
        pointer = f"/utterances/{index}/hypotheses"
        hypotheses = one.get("hypotheses") if isinstance(one, Mapping) else None
        if not _is_list(hypotheses) or not hypotheses:
            raise InputError(f"{pointer} is not a list with entries; need one", pointer=pointer)
        for rank, hypothesis in enumerate(hypotheses):
            text = hypothesis.get("text") if isinstance(hypothesis, Mapping) else None
            _require_text(text, f"{pointer}/{rank}/text")
    options = body.get("options")
    n_best = options.get("n_best") if isinstance(options, Mapping) else None
    is_count = isinstance(n_best, int) and not isinstance(n_best, bool) and n_best > 0
    return RescoreAsk(_json(body), lists, n_best if is_count else None)


def ask_lattice(lattice: bytes | Json, own: Sequence[str], fields: Json) -> LatticeAsk:
    """A request of one lattice; `format`, `symbols`, `context`, `id` and `final` belong to it.

    Raises:
        InputError: the format does not fit the content, there is no text of the decoder, or JSON
            cannot say it.
    """
    rest = dict(fields)
    of_it = ("format", "symbols", "context", "id", "final")
    entry = {name: rest.pop(name) for name in of_it if rest.get(name) is not None}
    key = _CONTENT.get(entry.setdefault("format", "k2-json"))
    if key is None or (key == "lattice") != isinstance(lattice, Mapping):
        kind = "an object" if isinstance(lattice, Mapping) else "bytes"
        known = ", ".join(_CONTENT)
        raise InputError(
            f"format is {entry['format']!r} for {kind}; need k2-json for an object, or one of "
            f"{known} for bytes",
            pointer="/format",
        )
    if isinstance(lattice, Mapping):
        entry[key] = lattice
    elif key == "text":
        entry[key] = _decoded(lattice)
    else:
        entry[key] = base64.b64encode(lattice).decode("ascii")
    if not own:
        raise InputError("first_pass has no text; need the decoder's own", pointer="/first_pass")
    for rank, text in enumerate(own):
        _require_text(text, f"/first_pass/{rank}")
    return LatticeAsk(_json(_body({"lattices": [entry]}, rest)), tuple(own))


def ask_score(texts: Sequence[str], fields: Json) -> ScoreAsk:
    """A request of texts.

    Raises:
        InputError: an entry is no text, or JSON cannot say it.
    """
    if not _is_list(texts):
        raise InputError(f"texts is a {type(texts).__name__}; need a list", pointer="/texts")
    for index, text in enumerate(texts):
        _require_text(text, f"/texts/{index}")
    return ScoreAsk(_json(_body({"texts": list(texts)}, fields)), tuple(texts))


def _body(body: Json, fields: Json) -> dict[str, Any]:
    return {**body, **{name: value for name, value in fields.items() if value is not None}}


def _json(body: Json) -> bytes:
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the request is not JSON: {error}; need JSON's types") from None


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _require_text(value: object, pointer: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{pointer} is {value!r}; need a text", pointer=pointer)


def _decoded(lattice: bytes) -> str:
    try:
        return bytes(lattice).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the lattice is not UTF-8 ({error}); need text", pointer="/lattice"
        ) from None
