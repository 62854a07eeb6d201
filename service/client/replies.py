"""What a call comes to: one shape, whether the service answered or the first pass stands.

`degraded` says why a result is not what the whole LM would say: what the service names there, or
one of `REASONS` where it did not answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Json = Mapping[str, Any]
UNAVAILABLE = "unavailable"
DEADLINE = "deadline"
OVERLOADED = "overloaded"
INVALID_REPLY = "invalid_reply"
REFUSED = "refused"
INVALID = "invalid"
CIRCUIT_OPEN = "circuit_open"
REASONS: Mapping[str, str] = MappingProxyType(
    {
        UNAVAILABLE: "nobody answered, or with a server's error",
        DEADLINE: "no answer in time",
        OVERLOADED: "the service has too much to do, 429",
        INVALID_REPLY: "an answer that is none of ours",
        REFUSED: "the key or the model is not known there, 401, 403 or 404",
        INVALID: "the service finds the request wrong, 400, 413, 415 or 422",
        CIRCUIT_OPEN: "it failed so often that it was not asked",
    }
)


class InvalidReplyError(Exception):
    """The service's answer is not one to the request. Never leaves the client."""


@dataclass(frozen=True)
class Problem:
    """Why the service refused something.

    Attributes:
        status: of HTTP.
        code: stable name, as in the README.
        detail: for people.
        errors: (JSON pointer into the request, message) of each fault.
    """

    status: int
    code: str
    detail: str
    errors: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reply:
    """What all replies have.

    Attributes:
        degraded: why there was no answer; empty where there was one.
        detail: the same for people.
        problem: what the service said instead of an answer.
        body: the service's whole answer; empty where there was none.
    """

    degraded: tuple[str, ...] = ()
    detail: str = ""
    problem: Problem | None = None
    body: Json = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Hypothesis:
    """One word sequence.

    Attributes:
        text: as the decoder wrote it.
        score: nats, what it was ranked by; None where the LM was not asked.
        posterior: among all that were scored; None where it is not known.
        input_rank: its place in the decoder's list, from 1; None for a lattice.
        fields: all that the service says of it, or all that the decoder said.
    """

    text: str
    score: float | None = None
    posterior: float | None = None
    input_rank: int | None = None
    fields: Json = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class RescoredList:
    """One utterance.

    Attributes:
        id: as it was given.
        hypotheses: best first; in the decoder's order where `degraded` says so.
        changed: whether another hypothesis is now the best.
        degraded: why this is not what the whole LM would say; usually empty.
        problem: what is wrong with this utterance alone, which then is in the decoder's order.
    """

    id: str | None
    hypotheses: tuple[Hypothesis, ...]
    changed: bool = False
    degraded: tuple[str, ...] = ()
    problem: Problem | None = None

    @property
    def text(self) -> str:
        """The best text."""
        return self.hypotheses[0].text


@dataclass(frozen=True)
class RescoreReply(Reply):
    """Every utterance of a request, in its order."""

    results: tuple[RescoredList, ...] = ()


@dataclass(frozen=True)
class LatticeReply(Reply):
    """One lattice.

    Attributes:
        hypotheses: best first; the decoder's own text where `degraded` says so.
        is_exact: whether no other sequence of the lattice can be better.
        cuts: choices of the request that ended the search.
        lattice: the rescored one as the wire has it, if it was asked for.
    """

    hypotheses: tuple[Hypothesis, ...] = ()
    is_exact: bool = False
    cuts: tuple[str, ...] = ()
    lattice: Json | None = None

    @property
    def text(self) -> str:
        """The best text."""
        return self.hypotheses[0].text


@dataclass(frozen=True)
class ScoredText:
    """One text.

    Attributes:
        text: as it was given.
        log_prob: nats, end of sentence included if the request is final; None without an answer.
        fields: all that the service says of it.
    """

    text: str
    log_prob: float | None = None
    fields: Json = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ScoreReply(Reply):
    """Every text of a request, in its order."""

    results: tuple[ScoredText, ...] = ()


def problem_of(body: object) -> Problem | None:
    """The problem details of a parsed body; None if it is none of this service."""
    if not isinstance(body, Mapping):
        return None
    status, code, detail = (body.get(name) for name in ("status", "code", "detail"))
    if not (isinstance(status, int) and isinstance(code, str) and isinstance(detail, str)):
        return None
    listed = body.get("errors", [])
    faults = listed if isinstance(listed, list) else []
    pairs = [
        (fault.get("pointer"), fault.get("message"))
        for fault in faults
        if isinstance(fault, Mapping)
    ]
    errors = tuple(
        (pointer, message)
        for pointer, message in pairs
        if isinstance(pointer, str) and isinstance(message, str)
    )
    return Problem(status, code, detail, errors)


def objects(body: Json, name: str, count: int) -> list[Json]:
    """The list of that many objects under a name.

    Raises:
        InvalidReplyError: it is something else.
    """
    found = body.get(name)
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise InvalidReplyError(f"{name} is no list of objects")
    if len(found) != count:
        raise InvalidReplyError(f"{name} has {len(found)} entries; need {count}")
    return found


def number(body: Json, name: str) -> float | None:
    """A finite number; None where it is null or absent.

    Raises:
        InvalidReplyError: it is something else.
    """
    found = body.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise InvalidReplyError(f"{name} is no number")
    try:
        value = float(found)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise InvalidReplyError(f"{name} is not finite")
    return value


def names(body: Json, name: str) -> tuple[str, ...]:
    """A list of strings.

    Raises:
        InvalidReplyError: it is something else.
    """
    found = body.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidReplyError(f"{name} is no list of strings")
    return tuple(found)


def ranked(hypotheses: Sequence[Json], texts: Sequence[str], count: int) -> tuple[Hypothesis, ...]:
    """The service's order of these texts, each of which it may name once.

    Raises:
        InvalidReplyError: it names another one, or one of them twice.
    """
    order: list[Hypothesis] = []
    for body in hypotheses:
        rank = body.get("input_rank")
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= len(texts):
            raise InvalidReplyError(f"an input_rank is not from 1 to {len(texts)}")
        if body.get("text") != texts[rank - 1]:
            raise InvalidReplyError(f"the text of input_rank {rank} is not the one that was sent")
        score, posterior = number(body, "score"), number(body, "posterior")
        order.append(Hypothesis(texts[rank - 1], score, posterior, rank, body))
    if len({one.input_rank for one in order}) != count:
        raise InvalidReplyError(f"{count} hypotheses were sent; need each once")
    return tuple(order)
