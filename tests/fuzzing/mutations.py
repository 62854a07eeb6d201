"""Damage done to valid requests: to their JSON, their bytes and their headers. Seeded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

JSON = "application/json"
DEEP = 60
INTERESTING: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e-308, 1e308, 10**30, 2**63, float("nan"),
    float("inf"), float("-inf"), "", " ", "the", "\ud800", "\x00", "é", "x" * 2000, "NaN", "1",
    [], {}, [[]], [None], {"": None}, ["the"] * 70, "en-small@sha256:", "tiny@", "/", "../..",
)  # fmt: skip
BYTES = (b"", b"\x00", b"\xff", b"{", b"]", b'"', b"\\u", b"\r\n", b"1e999", b",", b"\xed\xa0\x80")
HEADERS = {
    "content-type": ("", "text/plain", "application/json; charset=utf-16", "text/x-htk-slf", "x"),
    "content-encoding": ("gzip", "identity", "zstd", "x"),
    "x-request-timeout-ms": ("", "0", "-1", "nan", "1e400", "0.001", "50", "x", "99999999"),
    "x-request-id": ("", "x" * 200, "\x7f", "id"),
    "traceparent": ("", "00-x", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"),
    "accept": ("", "text/plain"),
}


@dataclass(frozen=True)
class Sent:
    """One request.

    Attributes:
        query: without its question mark.
    """

    path: str
    content: bytes
    query: str = ""
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": JSON})


def damaged(sent: Sent, chance: random.Random) -> Sent:
    """One to four kinds of damage, or, now and then, none."""
    for _ in range(chance.choice((0, 1, 1, 1, 1, 1, 2, 4))):
        sent = chance.choice(DAMAGES)(sent, chance)
    return sent


def _damage_json(sent: Sent, chance: random.Random) -> Sent:
    try:
        body = json.loads(sent.content)
    except (ValueError, RecursionError):
        return _damage_bytes(sent, chance)
    for _ in range(chance.choice((1, 1, 1, 3))):
        body = _changed(body, chance)
    return replace(sent, content=json.dumps(body).encode())


def _changed(body: Any, chance: random.Random) -> Any:
    places = list(_places(body))
    if not places:
        return deepcopy(chance.choice(INTERESTING))
    holder, key = chance.choice(places)
    action = chance.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[chance.choice(("", "x", key + "s", "/", "~1"))] = holder.pop(key)
    elif action == 2 and isinstance(holder, list):
        holder += [deepcopy(holder[key]) for _ in range(chance.choice((1, 3, 100)))]
    elif action == 3:
        other, place = chance.choice(places)
        holder[key] = deepcopy(other[place])
    elif action == 4:
        value = holder[key]
        for _ in range(chance.choice((1, 3, DEEP))):
            value = [value]
        holder[key] = value
    else:
        holder[key] = deepcopy(chance.choice(INTERESTING))
    return body


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key or index) below a node."""
    found: list[tuple[Any, Any]] = []
    waiting = [node]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict):
            keys: list[Any] = list(holder)
        elif isinstance(holder, list):
            keys = list(range(len(holder)))
        else:
            continue
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    return found


def _damage_bytes(sent: Sent, chance: random.Random) -> Sent:
    content = bytearray(sent.content)
    for _ in range(chance.choice((1, 1, 1, 6))):
        start = chance.randint(0, len(content))
        end = min(start + chance.choice((0, 1, 1, 4, 50, 5000)), len(content))
        action = chance.randrange(4)
        if action == 0:
            content[start:end] = chance.choice(BYTES)
        elif action == 1:
            content[start:end] = chance.randbytes(chance.choice((1, 2, 8)))
        elif action == 2:
            content[start:start] = content[start:end]
        elif content and start < len(content):
            content[start] ^= 1 << chance.randrange(8)
    return replace(sent, content=bytes(content))


def _damage_headers(sent: Sent, chance: random.Random) -> Sent:
    name = chance.choice(list(HEADERS))
    return replace(sent, headers={**sent.headers, name: chance.choice(HEADERS[name])})


def _damage_query(sent: Sent, chance: random.Random) -> Sent:
    names = ("n_best", "deadline_ms", "order", "beam", "lm_scale", "final", "model", "context", "x")
    values = ("", "0", "1", "-1", "nan", "1e999", "null", "true", "tiny", "%ff", "3&n_best=4")
    part = f"{chance.choice(names)}={chance.choice(values)}"
    return replace(sent, query="&".join(one for one in (sent.query, part) if one))


DAMAGES: tuple[Callable[[Sent, random.Random], Sent], ...] = (
    _damage_json,
    _damage_json,
    _damage_json,
    _damage_bytes,
    _damage_bytes,
    _damage_headers,
    _damage_query,
)
